"""What `jeoparda submit` does before and after Slurm: no cluster needed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jeoparda.errors import LaunchError, RecipeError, Stopped
from jeoparda.launch import job, script, watch
from jeoparda.launch.site import find, profiles
from jeoparda.signals import StopRequest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text("{store: store, run: run, model: {width: 16}, epochs: 2}")
    return path


# ---- the script


def written(site, folder: Path, stage: str = "train") -> str:
    return script.text(script.make_executor(stage, site, folder))


@pytest.mark.needs("submitit")
def test_dry_run_prints_the_script_and_touches_nothing(cli, recipe, tmp_path):
    jobs = tmp_path / "jobs"
    options = ["--site", "local-cluster", "--nodes", 2, "--ranks-per-node", 2, "--folder", jobs, "--dry-run"]
    done = cli("submit", *options, "train", recipe, "batch=8", PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(str(jobs), "JOBS").replace(sys.executable, "PYTHON")
    assert text == (GOLDEN / "local-cluster.sh").read_text()
    assert not jobs.exists()


@pytest.mark.needs("submitit")
def test_site_profile_reaches_the_script(tmp_path):
    (tmp_path / "site.yaml").write_text(
        "{partition: gpu, account: a1, gpus: gres, gpu_type: a100, gpus_per_node: 4, nodes: 3, ranks_per_node: 4,"
        " cpus_per_rank: 8, mem: 100G, modules: [CUDA/12], env: {X: a b}, setup: [ulimit -c 0], requeue: false,"
        " sbatch: {mail-type: END}, srun: [--label], time: '12:00:00', python: ch-run image -- python3, min_nodes: 2}"
    )
    text = written(find(str(tmp_path / "site.yaml"), account="a2"), tmp_path)
    for line in (
        "#SBATCH --account=a2",
        "#SBATCH --gres=gpu:a100:4",
        "#SBATCH --mail-type=END",
        "#SBATCH --mem=100G",
        "#SBATCH --no-kill",
        "export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * 4))",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --time=12:00:00",
        "module load CUDA/12",
        "export X='a b'",
        "ulimit -c 0",
    ):
        assert f"{line}\n" in text
    assert "--cpus-per-task=8 --cpu-bind=cores --label ch-run image -- python3 -u" in text
    assert "requeue" not in text.replace("put the job back", "")


# ---- what is refused


@pytest.mark.needs("submitit")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "RECIPE", "epoch=3"], "unknown key 'epoch'; did you mean 'epochs'?"),
        (["train", "RECIPE", "batch=0"], "batch = 0"),
        (["--site", "nowhere", "train", "RECIPE"], "there are generic, local-cluster"),
        (["--time", "00:00:10", "train", "RECIPE"], "leaves nothing of time = 00:00:10"),
        (["--time", "1h", "train", "RECIPE"], 'time = "1h"'),
        (["--ranks-per-node", 2, "synth", "RECIPE"], "synth is one process"),
    ],
)
def test_what_cannot_work_never_reaches_the_queue(cli, recipe, tmp_path, words, message):
    jobs = tmp_path / "jobs"
    done = cli("submit", "--folder", jobs, *[recipe if w == "RECIPE" else w for w in words])
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not jobs.exists()


@pytest.mark.needs("submitit")
def test_without_slurm_it_says_so(cli, recipe, tmp_path):
    done = cli("submit", "--folder", tmp_path / "jobs", "train", recipe, PATH=str(tmp_path))
    assert done.returncode == 1
    assert "there is no sbatch here" in done.stderr


def test_profiles_are_strict_and_all_load(tmp_path):
    assert [find(name).time_s > 0 for name in profiles()] == [True, True]
    (tmp_path / "s.yaml").write_text("partiton: batch")
    with pytest.raises(RecipeError, match="did you mean 'partition'"):
        find(str(tmp_path / "s.yaml"))
    with pytest.raises(RecipeError, match="min_nodes = 3 is more than nodes = 2"):
        find("generic", nodes=2, min_nodes=3)


# ---- what the script makes of the ranks' end

KILLED, GONE = "srun: error: n2: task 1: Killed\n", "srun: error: n1: task 0: Exited with exit code 75\n"
WRONG = "srun: error: n1: tasks 0-1,3: Exited with exit code 1\n"
AGAIN = f"{script.ATTEMPT} 2 of job 5 on n1\n"


@pytest.mark.needs("submitit")
@pytest.mark.parametrize(
    ("stage", "code", "stopped", "log", "ends", "requeued"),
    [
        ("train", 0, False, "", 0, False),
        ("train", 0, True, "", 75, True),
        ("train", 137, False, KILLED, 75, True),
        ("train", 137, False, GONE + KILLED, 75, True),
        ("train", 139, False, "srun: error: n1: task 0: Segmentation fault (core dumped)\n", 75, True),
        ("train", 1, False, "srun: error: Node failure on n2\n", 75, True),
        ("train", 137, False, WRONG + KILLED, 137, False),
        ("train", 137, False, GONE + WRONG, 137, False),  # those that noticed were faster than srun
        ("train", 137, False, "srun: error: n2: task 1: Out Of Memory\n", 137, False),
        ("train", 137, False, WRONG + AGAIN + KILLED, 75, True),
        ("train", 1, False, KILLED + AGAIN, 1, False),  # srun itself
        ("train", 1, False, "srun: error: Unable to create step for job 5: More processors requested\n", 1, False),
        ("evaluate", 137, False, KILLED, 137, False),  # it would begin anew each time
    ],
)
def test_jobs_go_on_after_a_lost_rank_but_not_after_a_mistake(tmp_path, stage, code, stopped, log, ends, requeued):
    teardown = written(find("local-cluster"), tmp_path, stage).partition("# teardown")[2]
    script.batch_log(tmp_path, "5").write_text(AGAIN + log)
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\n[ $1 = requeue ] && touch {tmp_path}/requeued && exit 1\necho " JobState=RUNNING "\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    if stopped:
        script.stop_mark(tmp_path, "5").touch()
    text = f"stopped={script.stop_mark(tmp_path, '5')}\n(exit {code})\n{teardown.lstrip()}"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "5"}
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (ends, "")
    assert (tmp_path / "requeued").exists() == requeued


# ---- starts that get nowhere


def test_a_start_from_where_the_last_ones_began_is_refused(rank, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    begun: list[str] = []

    def begin_at(step: str) -> None:
        monkeypatch.setattr("jeoparda.stages.progress", lambda *_: step)
        rank(lambda *_: begun.append(step), "train")

    for step in ("step 0", "step 4", "step 4", "step 4"):
        begin_at(step)
    with pytest.raises(SystemExit):
        begin_at("step 4")
    assert begun == ["step 0", "step 4", "step 4", "step 4"]
    assert "3 starts of this job in a row ended before they saved anything after step 4" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_RESTART_COUNT")  # another job of this number, of a cluster that counted anew
    begin_at("step 4")
    assert len(begun) == 5


# ---- signals in a job


@pytest.fixture
def rank(monkeypatch, tmp_path, keep_signals):
    """`rank(call, stage)`: what rank 0 of job 5 runs, here, with `call` in the stage's place."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setattr(job.StageJob, "_forget", lambda self: None)
    monkeypatch.setattr(job, "_AGAIN_S", 0.05)

    monkeypatch.setattr("jeoparda.stages.progress", lambda *_: "")

    def run(call, stage: str) -> None:
        monkeypatch.setattr("jeoparda.stages.call", call)
        job.StageJob(stage, tmp_path / "r.yaml", tmp_path)()

    return run


def test_a_signal_before_the_stage_listens_reaches_it(rank, tmp_path):
    def stage(*_):
        os.kill(os.getpid(), signal.SIGUSR2)
        request = StopRequest()
        end = time.monotonic() + 5
        while not request.asked and time.monotonic() < end:
            time.sleep(0.01)
        raise Stopped(f"by {request.asked}")

    rank(stage, "train")
    assert script.stop_mark(tmp_path, "5").exists()
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN  # or the end of Python would die of the next one


def test_a_stage_without_ranks_stops_anywhere(rank, tmp_path, capsys):
    def stage(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    rank(stage, "predict")
    assert script.stop_mark(tmp_path, "5").exists()
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_an_error_is_no_stop(rank, tmp_path):
    def stage(*_):
        raise RecipeError("no")

    with pytest.raises(SystemExit) as caught:
        rank(stage, "predict")
    assert caught.value.code == 1
    assert not script.stop_mark(tmp_path, "5").exists()


# ---- how a job ended


def test_slurms_line_is_read():
    line = (
        "JobId=7 JobName=a UserId=root(0) JobState=PENDING Reason=BeginTime Dependency=(null) Requeue=1 Restarts=2 "
        "BatchFlag=1 Reboot=0 ExitCode=0:15 NodeList=(null) Command=/x/y"
    )
    assert watch.parse(line) == watch.State("PENDING", "BeginTime", "", 0, 15, 2, True)


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("srun: error: node2: task 3: Killed\nsrun: error: node1: tasks 0-1: Killed\n", (3, "node2", "killed")),
        (
            "srun: error: n7: tasks 4,6-7: Exited with exit code 1\nsrun: Terminating StepId=5.0\n",
            (4, "n7", "exited with exit code 1"),
        ),
        ("srun: error: n1: task 0: Segmentation fault (core dumped)\n", (0, "n1", "segmentation fault")),
        ("srun: error: n1: task 0: Killed\njeoparda: attempt 2 of job 4 on n1\nall well\n", None),
        ("slurmstepd: error: *** JOB 4 CANCELLED DUE TO TIME LIMIT ***\n", None),
    ],
)
def test_first_rank_to_fail(log, found):
    assert watch.first_to_fail(log) == found


def test_a_dead_rank_is_named_with_its_log(tmp_path):
    script.batch_log(tmp_path, "5").write_text("srun: error: node2: task 1: Exited with exit code 1\n")
    script.rank_log(tmp_path, "5", 1, "err").write_text("".join(f"line {i}\n" for i in range(40)))
    with pytest.raises(LaunchError) as caught:
        watch.judge("5", tmp_path, watch.State("FAILED", nodes="node[1-2]", code=1))
    text = str(caught.value)
    assert "job 5 ended as FAILED, exit code 1 on node[1-2]" in text
    assert f"rank 1 on node2: exited with exit code 1; its log: {tmp_path}/5_1_log.err" in text
    assert "line 39" in text and "line 20" not in text


def test_other_ends(tmp_path):
    watch.judge("5", tmp_path, watch.State("COMPLETED"))
    with pytest.raises(Stopped, match="stopped early and saved; submit it again"):
        watch.judge("5", tmp_path, watch.State("FAILED", code=75))
    script.batch_log(tmp_path, "5").write_text("srun: error: node2: task 1: Killed\n")
    with pytest.raises(Stopped, match="stopped early: rank 1 on node2 killed; submit it again"):
        watch.judge("5", tmp_path, watch.State("FAILED", code=75))
    with pytest.raises(LaunchError, match="longer --time"):
        watch.judge("5", tmp_path, watch.State("TIMEOUT"))


def test_a_lost_node_is_not_the_end_while_slurm_runs_the_job_again(monkeypatch, tmp_path):
    names = ["PENDING", "RUNNING", "NODE_FAIL", "NODE_FAIL", "", "PENDING", "RUNNING", "COMPLETED"]
    states = [watch.State(n, requeue=True, restarts=int(i > 3)) for i, n in enumerate(names)]
    monkeypatch.setattr(watch, "state", lambda _: states.pop(0))
    said: list[str] = []
    assert watch.wait("5", tmp_path, 0.0, said.append).name == "COMPLETED"
    assert "job 5 RUNNING (restart 1)" in said


def test_an_older_jobs_log_is_not_taken_for_this_ones(monkeypatch, tmp_path):
    log = script.rank_log(tmp_path, "5", 0, "out")
    log.write_text("of another cluster\n")
    os.utime(log, (1, 1))

    def state(_):
        with open(log, "a") as f:
            f.write("mine\n")
        return watch.State("COMPLETED")

    states = [lambda _: watch.State("PENDING"), state]
    monkeypatch.setattr(watch, "state", lambda i: states.pop(0)(i))
    said: list[str] = []
    watch.wait("5", tmp_path, 0.0, said.append, since=time.time() - 60)
    assert said == ["job 5 PENDING", "mine", "job 5 COMPLETED"]


def test_a_job_that_slurm_holds_back_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "state", lambda _: watch.State("PENDING", "JobHoldMaxRequeue"))
    with pytest.raises(LaunchError, match="will not start: JobHoldMaxRequeue"):
        watch.wait("5", tmp_path, 0.0, print)
