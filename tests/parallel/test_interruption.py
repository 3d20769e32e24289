"""Ranks that are killed or told to stop: nothing hangs, nothing is lost, and the end is the same."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import JEOPARDA, Job, Ranks
from tests.parallel.recipes import train_recipe

MPI = pytest.mark.needs("mpirun", "horovod-mpi")
GLOO = pytest.mark.needs("horovod-gloo")


def recipe(folder: Path, store: Path) -> Path:
    """A checkpoint each second step of four."""
    return train_recipe(folder, store, "epochs: 4, batch: 6, precision: float64, checkpoint: {every_steps: 2}")


@pytest.fixture(scope="module")
def undisturbed(tiny_store, tmp_path_factory, cli) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = cli("train", recipe(folder, tiny_store))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def until_it_trains(job: Job, run: Path, ranks: int) -> list[int]:
    """Wait for the first checkpoint; the ranks' process ids."""
    until = time.monotonic() + 90
    while not list(run.glob("checkpoints/0*.pt")):
        if job.process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"no training: {job.end(1)}", pytrace=False)
        time.sleep(0.01)
    pids = job.pids()
    assert len(pids) == ranks
    return pids


def finished(run: Path) -> bool:
    return '"finished"' in (run / "journal.jsonl").read_text()


@pytest.mark.parametrize(
    ("launcher", "then"),
    [
        pytest.param("mpirun", ("mpirun", 4), marks=MPI),
        pytest.param("horovodrun", ("single", 1), marks=GLOO),
    ],
)
def test_one_rank_killed_ends_all_and_it_goes_on(
    ranks: Ranks, undisturbed, tiny_store, tmp_path, apart, launcher, then
):
    path, run = recipe(tmp_path, tiny_store), tmp_path / "run"
    job = ranks.start(2, launcher, "train", path)
    os.kill(until_it_trains(job, run, 2)[1], signal.SIGKILL)
    killed = time.monotonic()
    done = job.end(timeout=60)
    assert done.returncode != 0
    assert time.monotonic() - killed < 30
    assert not finished(run)
    done = ranks(then[1], then[0], "train", path)
    assert done.returncode == 0, done.stderr
    assert "going on from epoch" in done.stdout
    assert finished(run) and apart(run, undisturbed) < 1e-10


@MPI
@pytest.mark.parametrize("whom", ["all", "one"])
def test_told_to_stop_all_save_and_exit_75(ranks: Ranks, undisturbed, tiny_store, tmp_path, apart, whom):
    path, run = recipe(tmp_path, tiny_store), tmp_path / "run"
    # mpirun gives its own code when ranks do not exit 0, so let each rank write its own down
    code = (
        "import os, subprocess, sys, signal\n"
        "p = subprocess.Popen(sys.argv[2:])\n"
        "rank = os.environ['OMPI_COMM_WORLD_RANK']\n"
        "open(f'{sys.argv[1]}/{rank}.rc', 'w').write(str(p.wait()))"
    )
    job = ranks.start(2, "mpirun", "train", path, program=(sys.executable, "-c", code, str(tmp_path), *JEOPARDA))
    for pid in until_it_trains(job, run, 2)[: 2 if whom == "all" else 1]:
        os.kill(pid, signal.SIGTERM)
    done = job.end()
    assert [(tmp_path / f"{r}.rc").read_text() for r in (0, 1)] == ["75", "75"], done.stderr
    assert "stopped by" in done.stderr and "Traceback" not in done.stderr
    assert not finished(run)
    if whom == "one":
        return
    done = ranks(2, "mpirun", "train", path)
    assert done.returncode == 0, done.stderr
    assert finished(run) and apart(run, undisturbed) < 1e-10


@MPI
def test_an_error_of_one_rank_ends_all(ranks: Ranks, tiny_store, tmp_path):
    """A rank that fails while the others wait for it: they end, and its message is there."""
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    path = recipe(tmp_path, store)
    code = (
        "import os, sys, runpy\n"
        "import jeoparda.feed.reader as reader\n"
        "if os.environ['OMPI_COMM_WORLD_RANK'] == '1':\n"
        "    def torn(*_): raise reader.StoreError('the disk of rank 1 is gone')\n"
        "    reader.Reader._read_and_check = torn\n"
        "sys.argv[0] = 'jeoparda'\n"
        "runpy.run_module('jeoparda', run_name='__main__')"
    )
    begun = time.monotonic()
    done = ranks.start(2, "mpirun", "train", path, program=(sys.executable, "-c", code)).end(60)
    assert done.returncode != 0 and time.monotonic() - begun < 50
    assert "jeoparda: rank 1 of 2: the disk of rank 1 is gone" in done.stderr


@MPI
def test_a_launcher_that_started_another_number_is_refused(ranks: Ranks, tiny_store, tmp_path):
    """As when an MPI of another make launched: every rank would train alone and write over the rest."""
    path = recipe(tmp_path, tiny_store)
    done = ranks.start(
        2, "mpirun", "train", path, program=("env", "OMPI_COMM_WORLD_SIZE=3", *JEOPARDA)
    ).end(60)  # fmt: skip
    assert done.returncode == 1
    assert "mpirun (Open MPI) started 3 ranks, but Horovod sees 2" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.needs("horovod")
def test_ranks_that_do_not_find_each_other_are_refused(cli, tiny_store, tmp_path):
    done = cli("train", recipe(tmp_path, tiny_store), SLURM_STEP_NUM_TASKS="4")
    assert done.returncode == 1
    assert "srun started 4 ranks, but SLURM_PROCID='' does not say which one this is" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
