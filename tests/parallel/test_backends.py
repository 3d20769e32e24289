"""Horovod and torch.distributed, under every launcher: the same collectives, the same averages, the same end.

`slurm-like`: plain processes with the variables of a Slurm step, on two nodes that are both this machine; the ranks
find each other by the first one. A real Slurm is in tests/slurm/test_ranks.py.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from jeoparda.comm import Single
from tests.conftest import Done, Job, Ranks, environment
from tests.parallel.backend_ranks import pulls, trained

MPI = pytest.mark.needs("mpirun", "horovod-mpi")
MPI4PY = pytest.mark.needs("mpirun", "mpi4py")
GLOO = pytest.mark.needs("horovod-gloo")
PROGRAM = (sys.executable, "-m", "tests.parallel.backend_ranks")


class SlurmLike:
    """Starts `nodes` x `per_node` plain processes as srun --mpi=none would."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._step = 0

    def start(self, nodes: int, per_node: int, *words: object, **more: str) -> list[Job]:
        self._step += 1
        step = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_ID": str(self._step),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_TASKS": str(nodes * per_node),
            "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})",
        }
        started = []
        for rank in range(nodes * per_node):
            place = {"SLURM_PROCID": rank, "SLURM_NODEID": rank // per_node, "SLURM_LOCALID": rank % per_node}
            env = environment(**step, **{k: str(v) for k, v in place.items()}, **more)
            command, pipe = [*PROGRAM, *map(str, words)], subprocess.PIPE
            started.append(Job(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)))
        self.jobs += started
        return started

    def __call__(self, nodes: int, per_node: int, *words: object, **more: str) -> list[Done]:
        return [job.end(120) for job in self.start(nodes, per_node, *words, **more)]


@pytest.fixture
def slurm_like() -> Iterator[SlurmLike]:
    started = SlurmLike()
    yield started
    for job in started.jobs:
        job.kill()


@pytest.fixture
def found(ranks: Ranks, slurm_like: SlurmLike, tmp_path: Path) -> Callable[..., list]:
    """`found(4, "mpirun", "averages", "torch")`: what each rank found."""

    def run(n: int, launcher: str, what: str, backend: str, *exchange: str) -> list:
        if launcher == "slurm-like":
            done = slurm_like(2, n // 2, what, backend, tmp_path, *exchange)
        else:
            done = [ranks.start(n, launcher, what, backend, tmp_path, *exchange, program=PROGRAM).end(120)]
        assert [d.returncode for d in done] == [0] * len(done), done
        return [torch.load(tmp_path / f"{rank}.pt") for rank in range(n)]

    return run


LAUNCHES = [
    pytest.param(2, "mpirun", "horovod", marks=MPI),
    pytest.param(4, "mpirun", "horovod", marks=MPI),
    pytest.param(2, "mpirun", "torch", marks=MPI4PY),
    pytest.param(4, "mpirun", "torch", marks=MPI4PY),
    pytest.param(2, "horovodrun", "horovod", marks=GLOO),
    pytest.param(2, "horovodrun", "torch", marks=GLOO),
    pytest.param(4, "slurm-like", "horovod", marks=GLOO),
    pytest.param(4, "slurm-like", "torch"),
]


@pytest.mark.parametrize(("n", "launcher", "backend"), [LAUNCHES[1], *LAUNCHES[3:]])
def test_collectives_mean_the_same(found, n, launcher, backend):
    per_node = n // 2 if launcher == "slurm-like" else n
    expected = [[rank, n, rank % per_node, per_node] for rank in range(n)]
    assert found(n, launcher, "collectives", backend) == expected


@pytest.fixture(scope="module")
def alone() -> dict[int, dict[str, torch.Tensor]]:
    """What one process comes to, for steps of one part and of two."""
    return {parts: trained(Single(), parts) for parts in (1, 2)}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.parametrize(("n", "launcher", "backend"), [LAUNCHES[0], LAUNCHES[2], *LAUNCHES[6:]])
def test_weights_are_those_of_one_process(found, alone, n, launcher, backend):
    """In float64, with synchronised norms, clipping, and one part or two a step."""
    assert apart(alone[1], alone[2]) > 1e-3  # norms see a part at a time, so that these are two tests
    for mine in found(n, launcher, "averages", backend):
        assert apart(mine[1], alone[1]) < 1e-12
        assert apart(mine[2], alone[2]) < 1e-12


@pytest.mark.parametrize(
    ("n", "launcher", "backend", "words"),
    [
        pytest.param(4, "slurm-like", "horovod", ("reduce=hierarchical",), marks=GLOO),  # 2 nodes x 2 ranks
        pytest.param(4, "mpirun", "horovod", ("reduce=hierarchical",), marks=MPI),  # 1 node x 4 ranks
        pytest.param(2, "mpirun", "horovod", ("fusion_mb=0.001", "cycle_ms=1"), marks=MPI),
        pytest.param(2, "mpirun", "torch", ("fusion_mb=0.001",), marks=MPI4PY),
    ],
)
def test_however_it_is_exchanged(found, alone, n, launcher, backend, words):
    for mine in found(n, launcher, "averages", backend, *words):
        assert apart(mine[1], alone[1]) < 1e-12
        assert apart(mine[2], alone[2]) < 1e-12


@pytest.mark.parametrize(
    ("n", "launcher", "backend", "words"),
    [
        pytest.param(2, "mpirun", "horovod", (), marks=MPI),
        pytest.param(2, "mpirun", "torch", (), marks=MPI4PY),
        pytest.param(4, "slurm-like", "horovod", ("reduce=hierarchical",), marks=GLOO),
    ],
)
def test_as_float16_three_digits_stay(found, n, launcher, backend, words):
    for mine in found(n, launcher, "gradients", backend, "compression=float16", *words):
        expected = pulls(n).mean(0, keepdim=True)
        assert mine.dtype == torch.float32
        assert 0 < (mine - expected).abs().max() < n * 2**-10  # of numbers up to about 2, rounded n + 1 times


def summed(pulls: torch.Tensor) -> torch.Tensor:
    """Adasum by its definition, pair by pair. pulls: (rank, number)"""
    if len(pulls) == 1:
        return pulls[0]
    a, b = summed(pulls[: len(pulls) // 2]), summed(pulls[len(pulls) // 2 :])
    return a * (1 - a @ b / (2 * a @ a)) + b * (1 - a @ b / (2 * b @ b))


@MPI
@pytest.mark.parametrize("n", [2, 4])
def test_adasum_is_what_its_paper_says(found, n):
    for mine in found(n, "mpirun", "gradients", "horovod", "reduce=adasum"):
        torch.testing.assert_close(mine[0], summed(pulls(n)), rtol=1e-5, atol=1e-6)
        assert (mine[0] - pulls(n).mean(0)).abs().max() > 0.01


@MPI
def test_adasum_of_three_is_refused(ranks: Ranks, tmp_path):
    words = ("gradients", "horovod", tmp_path, "reduce=adasum")
    done = ranks.start(3, "mpirun", *words, program=PROGRAM).end(60)
    assert done.returncode != 0
    assert "exchange.reduce = 'adasum': ranks must be a power of two, these are 3" in done.stderr


@GLOO
def test_adasum_by_gloo_is_refused(slurm_like, tmp_path):
    for done in slurm_like(1, 2, "gradients", "horovod", tmp_path, "reduce=adasum"):
        assert done.returncode == 1 and "exchange.reduce = 'adasum': Horovod has it by MPI only" in done.stderr


@pytest.mark.parametrize(("n", "launcher", "backend"), [LAUNCHES[0], LAUNCHES[2]])
def test_compiled_is_as_eager(found, alone, n, launcher, backend):
    for mine in found(n, launcher, "compiled", backend):
        assert apart(mine, alone[1]) < 1e-12


@pytest.mark.parametrize(("n", "launcher", "backend"), [LAUNCHES[1], LAUNCHES[3]])
def test_ranks_that_part_are_told_all_alike(found, n, launcher, backend):
    told = "weights after: 3.weight differs from rank 0 on rank 3: the ranks have parted"
    assert [words[: len(told)] for words in found(n, launcher, "parted", backend)] == [told] * n


@MPI
def test_a_mistake_is_not_taken_for_a_lost_rank(found):
    assert all("Mismatched" in words for words in found(2, "mpirun", "mistaken", "horovod"))


@pytest.mark.parametrize("what", ["lost", "lost_in_training"])
@pytest.mark.parametrize("backend", [pytest.param("horovod", marks=GLOO), "torch"])
def test_who_loses_a_rank_says_so_and_ends_resumable(slurm_like, tmp_path, backend, what):
    """With nobody who would end them: a launcher may, before they have noticed."""
    jobs = slurm_like.start(1, 3, what, backend, tmp_path)
    assert jobs[2].process.wait(60) == -9
    killed = time.monotonic()
    for job in jobs[:2]:
        done = job.end(20)
        assert done.returncode == 75, done.stderr
        assert "a rank is gone, waited for in" in done.stderr and "goes on from its last checkpoint" in done.stderr
        assert "Traceback" not in done.stderr
    assert time.monotonic() - killed < 20


@GLOO
def test_under_horovodrun_too(ranks: Ranks, tmp_path):
    code = (
        "import os, signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # horovodrun ends all when one has ended
        "code = subprocess.call(sys.argv[2:], preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))\n"
        "open(f'{sys.argv[1]}/' + os.environ['HOROVOD_RANK'] + '.rc', 'w').write(str(code))\n"
        "sys.exit(code % 256)"
    )
    program = (sys.executable, "-c", code, str(tmp_path), *PROGRAM)
    done = ranks.start(2, "horovodrun", "lost", "horovod", tmp_path, program=program).end(60)
    assert done.returncode != 0
    assert [(tmp_path / f"{rank}.rc").read_text() for rank in (0, 1)] == ["75", "-9"], done.stderr
    assert "rank 0 of 2: a rank is gone, waited for in the sum of the test" in done.stdout + done.stderr


@pytest.mark.parametrize(("n", "launcher", "backend"), [LAUNCHES[0], LAUNCHES[2], LAUNCHES[7]])
def test_closing_waits_for_nobody_s_death(found, n, launcher, backend):
    assert found(n, launcher, "late", backend) == [None] * n
