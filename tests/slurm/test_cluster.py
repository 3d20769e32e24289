"""Jobs on a real Slurm of four emulated nodes: the figures of mpirun, whatever happens on the way."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jeoparda.journal import read
from jeoparda.launch.job import IDLE_STARTS
from jeoparda.launch.script import starts_file
from tests.conftest import ROOT
from tests.slurm.conftest import Cluster, job_of, marked, short_folder, start, stop

pytestmark = pytest.mark.needs("slurm", "submitit", "horovod-mpi")
EPOCHS = 4


@pytest.fixture(scope="module")
def recipe(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slurm") / "train.yaml"
    path.write_text(
        f"{{store: {tiny_store}, run: unset, model: {{width: 16}}, epochs: {EPOCHS}, batch: 12, norm: frozen,"
        # in float64, where no two scores are so near that rounding changes their order, and with it the mAP
        " precision: float64, optimizer: {kind: sgd, lr: 0.02}, feed: {kind: plain}}"
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    """The run of `mpirun -np 4`."""
    from tests.conftest import Ranks

    run = recipe.parent / "undisturbed"
    done = Ranks([])(4, "mpirun", "train", recipe, f"run={run}")
    assert done.returncode == 0, done.stderr
    return run


def figures(run: Path) -> list[list[float]]:
    lines = [e for e in read(run / "journal.jsonl") if e["event"] == "epoch"]
    assert [e["epoch"] for e in lines] == list(range(1, EPOCHS + 1))
    return [[e["loss"], e["val"]["loss"], e["val"]["micro_f1"], e["val"]["map"]] for e in lines]


def same(run: Path, undisturbed: Path, apart) -> None:
    assert apart(run, undisturbed) < 1e-5
    for mine, theirs in zip(figures(run), figures(undisturbed), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def begun(run: Path) -> bool:
    """Training is under way, and listens to signals."""
    return (run / "journal.jsonl").exists()


def test_two_nodes_of_two_ranks_give_what_mpirun_gives(cluster: Cluster, recipe, undisturbed, apart, tmp_path):
    process = cluster.submit("train", recipe, f"run={tmp_path / 'run'}", ranks=(2, 2), jobs=tmp_path / "jobs")
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, out + err
    assert "on 4 rank(s) (horovod)" in out and "COMPLETED (on node" in out
    same(tmp_path / "run", undisturbed, apart)


def test_a_job_told_to_stop_is_requeued_and_goes_on(cluster: Cluster, recipe, undisturbed, apart, until, tmp_path):
    run, jobs = tmp_path / "run", tmp_path / "jobs"
    process = cluster.submit("train", recipe, f"run={run}", jobs=jobs)
    until(lambda: begun(run) or process.poll() is not None)
    cluster.call("scancel", "--signal=USR1", job_of(jobs))
    recipe_text = recipe.read_text()
    try:
        recipe.write_text("this: is edited while the job waits")
        out, err = process.communicate(timeout=120)
    finally:
        recipe.write_text(recipe_text)
    assert process.returncode == 0, out + err
    assert "restart 1" in out
    events = [e["event"] for e in read(run / "journal.jsonl")]
    assert events.count("start") == 1 and events.count("resume") == 1
    same(run, undisturbed, apart)


def test_a_preempted_job_makes_way_and_comes_back(cluster: Cluster, recipe, undisturbed, apart, until, tmp_path):
    run, jobs = tmp_path / "run", tmp_path / "jobs"
    process = cluster.submit("train", recipe, f"run={run}", ranks=(1, 1), jobs=jobs)
    until(lambda: begun(run) or process.poll() is not None)
    done = cluster.call("srun", "--partition=urgent", "--nodes=4", "--ntasks-per-node=4", "hostname")
    assert len(done.splitlines()) == 16
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "restart 1" in out
    same(run, undisturbed, apart)


@pytest.mark.parametrize("hit", [signal.SIGKILL, signal.SIGSTOP])
def test_a_job_whose_rank_is_lost_goes_on(cluster: Cluster, recipe, undisturbed, apart, until, tmp_path, hit):
    run, jobs = tmp_path / "run", tmp_path / "jobs"
    words = [f"run={run}", "checkpoint.every_steps=1", "stall_s=5"]
    process = cluster.submit("train", recipe, *words, jobs=jobs)
    until(lambda: any(run.glob("checkpoints/0*.pt")) or process.poll() is not None)
    os.kill(rank_process(job_of(jobs), 1, cluster), hit)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "restart 1" in out
    same(run, undisturbed, apart)


def test_a_job_goes_on_with_the_nodes_that_are_left(cluster: Cluster, recipe, undisturbed, apart, until, tmp_path):
    """One goes down and comes back, whose rank is lost; another, drained meanwhile, takes no new job."""
    run, jobs = tmp_path / "run", tmp_path / "jobs"
    words = ["--min-nodes", 1, "train", recipe, f"run={run}", "checkpoint.every_steps=1"]
    process = cluster.submit(*words, ranks=(4, 1), jobs=jobs)
    until(lambda: any(run.glob("checkpoints/0*.pt")) or process.poll() is not None)
    cluster.call("scontrol", "update", "nodename=node3", "state=drain", "reason=test")
    cluster.call("scontrol", "update", "nodename=node4", "state=down", "reason=test")
    try:
        out, err = process.communicate(timeout=120)
    finally:
        cluster.call("scontrol", "update", "nodename=node3", "state=resume")
    assert process.returncode == 0, out + err
    assert [e["ranks"] for e in read(run / "journal.jsonl") if e["event"] in ("start", "resume")] == [4, 3]
    same(run, undisturbed, apart)


def test_a_job_that_gets_nowhere_stops_and_says_why(cluster: Cluster, recipe, until, tmp_path):
    """Its rank 1 is killed in each start before anything is saved."""
    run, jobs = tmp_path / "run", tmp_path / "jobs"
    process = cluster.submit("train", recipe, f"run={run}", "epochs=500", jobs=jobs)

    def told() -> int:
        file = starts_file(jobs, job_of(jobs))
        return len(file.read_text().splitlines()) if file.exists() else 0

    for number in range(IDLE_STARTS):
        until(lambda before=number: told() > before or process.poll() is not None)
        os.kill(rank_process(job_of(jobs), 1, cluster), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"job {job_of(jobs)} ended as FAILED" in err and "rank 0 on " in err
    assert f"{IDLE_STARTS} starts of this job in a row ended before they saved anything after its beginning" in err


def test_a_mistake_ends_the_job_at_once_and_its_rank_is_named(cluster: Cluster, recipe, tmp_path):
    run, jobs = tmp_path / "run", tmp_path / "jobs"
    process = cluster.submit("train", recipe, f"run={run}", "optimizer.lr=1e30", jobs=jobs)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "restart" not in out
    assert f"job {job_of(jobs)} ended as FAILED" in err
    assert "the loss is not finite" in err and re.search(f"{jobs}/{job_of(jobs)}_[01]_log.err", err)


def rank_process(job: str, rank: int, cluster: Cluster) -> int:
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}", f"SLURM_CONF={cluster.folder}/etc/slurm.conf"}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted <= set(path.read_text(errors="replace").split("\0")):
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError(f"rank {rank} of job {job} not found")


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, recipe, until, tmp_path):
    run, jobs = tmp_path / "run", tmp_path / "jobs"
    process = cluster.submit("train", recipe, f"run={run}", "epochs=500", ranks=(1, 1), jobs=jobs)
    until(lambda: begun(run) or process.poll() is not None)
    cluster.call("scancel", job_of(jobs))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ended as CANCELLED" in err
    time.sleep(1)
    assert cluster.call("squeue", "--noheader", "-j", job_of(jobs)).strip() == ""


def test_sbatch_script_stops_and_goes_on(cluster: Cluster, recipe, undisturbed, apart, until, tmp_path):
    run = tmp_path / "run"
    size = ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1", f"--chdir={tmp_path}"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = [*size, f"--export=ALL,PATH={path}", ROOT / "slurm" / "train.sbatch", recipe, f"run={run}"]
    job = cluster.call("sbatch", "--parsable", *words).strip()
    until(lambda: begun(run))
    cluster.call("scancel", "--signal=USR1", job)
    until(lambda: "JobState=COMPLETED" in cluster.call("scontrol", "show", "job", job))
    assert "Restarts=1" in cluster.call("scontrol", "show", "job", job)
    same(run, undisturbed, apart)


# ---- the throw-away cluster


def test_a_crashed_cluster_leaves_nothing_and_disturbs_no_other(cluster: Cluster):
    folder = short_folder()
    done = start(folder, NODES="1", DBD="0")
    try:
        assert done.returncode == 0, done.stderr
        other = Cluster(folder)
        other.call("sbatch", "--output=/dev/null", "--wrap", "sleep 1000")
        assert len(marked(folder)) >= 3
        pids = dict(line.split()[:2] for line in (folder / "run" / "pids").read_text().splitlines())
        os.kill(int(pids["slurmctld"]), signal.SIGKILL)
    finally:
        ended = stop(folder)
    assert ended.returncode == 0, ended.stderr
    assert not folder.exists() and not marked(folder)
    assert stop(folder).returncode == 0
    assert "UP" in cluster.call("scontrol", "ping")


def test_stop_and_start_leave_foreign_folders_alone(tmp_path):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        (folder / "mine").touch()
        assert start(folder).returncode == 2
        assert stop(folder).returncode == 2
        assert (folder / "mine").exists()
    finally:
        shutil.rmtree(folder)


def test_missing_programs_are_named(tmp_path):
    for name in ("bash", "id", "dirname", "env", "sort", "paste"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    code = (ROOT / "slurm" / "cluster" / "start.sh").read_text().replace("PATH=$PATH:/usr/sbin:/sbin\n", "")
    (tmp_path / "start.sh").write_text(code)
    done = subprocess.run(
        [shutil.which("bash") or "bash", tmp_path / "start.sh", tmp_path / "c"],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 3
    assert "apt-get install" in done.stderr and "slurm-client slurmctld slurmd" in done.stderr
    assert not (tmp_path / "c").exists()
