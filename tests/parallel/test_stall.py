"""A rank that is stopped or hangs: it is noticed in the stated time and named, all end, and the run goes on."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from jeoparda.signals import EXIT_RESUMABLE
from tests.conftest import Ranks
from tests.parallel.recipes import rank_of, train_recipe
from tests.parallel.test_interruption import until_it_trains

pytestmark = pytest.mark.needs("mpirun", "horovod-mpi")
STALL_S = 6.0
SMALL = "model.name=shallow"
ROOM_S = 12.0  # for the message and for the launcher to end the others, on busy cores


def recipe(folder: Path, store: Path) -> Path:
    return train_recipe(folder, store, f"epochs: 6, batch: 6, stall_s: {STALL_S}, checkpoint: {{every_steps: 2}}")


@pytest.fixture(scope="module")
def undisturbed(tiny_store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = Ranks([])(2, "mpirun", "train", recipe(folder, tiny_store), SMALL)
    assert done.returncode == 0, done.stderr
    assert not (folder / "run" / "ranks").exists()
    return folder / "run"


def gone(pid: int) -> bool:
    """Ended, or about to, as the launcher has just seen to."""
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_noticed_and_named(ranks: Ranks, undisturbed, tiny_store, tmp_path, apart, rank):
    path, run = recipe(tmp_path, tiny_store), tmp_path / "run"
    job = ranks.start(2, "mpirun", "train", path, SMALL)
    pid = next(pid for pid in until_it_trains(job, run, 2) if rank_of(pid) == rank)
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    done = job.end(90)
    assert done.returncode == EXIT_RESUMABLE, done.stderr
    assert STALL_S - 1 < time.monotonic() - stopped < STALL_S + ROOM_S
    assert re.search(rf"^jeoparda: rank {1 - rank} of 2: no step for \d+ s, waiting in .* \(comm", done.stderr, re.M)
    assert f"; rank {rank} on {os.uname().nodename} (pid {pid}) was last heard of " in done.stderr
    assert gone(pid)
    done = ranks(2, "mpirun", "train", path, SMALL)
    assert done.returncode == 0, done.stderr
    assert "going on from epoch" in done.stdout and apart(run, undisturbed) == 0
    assert not (run / "ranks").exists()


def test_a_rank_that_lives_and_hangs_is_named_with_the_line(ranks: Ranks, tiny_store, tmp_path):
    """As on a filesystem that does not answer one node: the others wait for it in an exchange."""
    code = (
        "import glob, os, sys, time, runpy\n"
        "import jeoparda.feed.reader as reader\n"
        "read = reader.Reader._read_and_check\n"
        "def hung(*words):\n"
        "    if glob.glob(os.environ['RUN'] + '/checkpoints/0*.pt'): time.sleep(600)\n"
        "    return read(*words)\n"
        "if os.environ['OMPI_COMM_WORLD_RANK'] == '1': reader.Reader._read_and_check = hung\n"
        "sys.argv[0] = 'jeoparda'\n"
        "runpy.run_module('jeoparda', run_name='__main__')"
    )
    path = recipe(tmp_path, tiny_store)
    done = ranks.start(
        2, "mpirun", "train", path, SMALL, program=(sys.executable, "-c", code), RUN=str(tmp_path / "run")
    ).end(90)
    assert done.returncode == EXIT_RESUMABLE, done.stderr
    assert re.search(r"^jeoparda: rank 0 of 2: no step for \d+ s, waiting in .* \(comm", done.stderr, re.M)
    assert "rank 1 on" in done.stderr and "lives, but has stood for " in done.stderr and "(feed/" in done.stderr
    assert "rank 0 on" not in done.stderr
