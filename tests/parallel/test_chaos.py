"""Chaos: ranks killed, told to stop or stopped, disks that fill up, checkpoints cut short, again and again at any
moment. The end is that of a run that nothing disturbed: bitwise on the same number of ranks, else but for rounding."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jeoparda.journal import read
from jeoparda.signals import EXIT_RESUMABLE
from tests.conftest import Done, Job, Ranks
from tests.parallel.recipes import rank_of, train_recipe
from tests.parallel.test_interruption import finished
from tests.unit.test_ingest_full_disk import Disk

pytestmark = pytest.mark.needs("mpirun", "horovod-mpi")
MOUNT = pytest.mark.needs("mount")
STALL_S = 5.0
SMALL = "model.name=shallow"
APART = 12  # most steps between two disturbances; what one takes to act are a few more


def recipe(folder: Path, store: Path, epochs: int) -> Path:
    """Four steps an epoch, a checkpoint each."""
    return train_recipe(
        folder, store, f"epochs: {epochs}, batch: 6, stall_s: {STALL_S}, checkpoint: {{every_steps: 1}}"
    )


@pytest.fixture(scope="module")
def undisturbed(tiny_store, tmp_path_factory) -> Callable[[int], Path]:
    @functools.cache
    def trained(epochs: int) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed")
        done = Ranks([])(2, "mpirun", "train", recipe(folder, tiny_store, epochs), SMALL, timeout=600)
        assert done.returncode == 0, done.stderr
        return folder / "run"

    return trained


@dataclass
class Case:
    """A training of two ranks whose run folder lies on a small disk, and what is done to it."""

    ranks: Ranks
    disk: Disk
    recipe: Path
    rng: random.Random

    @property
    def run(self) -> Path:
        return self.disk.folder / "run"

    def checkpoints(self) -> list[Path]:
        return sorted(self.run.glob("checkpoints/0*.pt"))

    def step(self) -> int:
        """Of the newest checkpoint, whole or not."""
        return max((int(path.stem) for path in self.checkpoints()), default=0)

    def start(self) -> Job:
        return self.ranks.start(2, "mpirun", "train", self.recipe, SMALL)

    def until(self, job: Job, seconds: float, there: Callable[[], bool]) -> bool:
        """Wait for something. It fails when the job ends instead."""
        end = time.monotonic() + seconds
        while not there() and time.monotonic() < end:
            if job.process.poll() is not None:
                pytest.fail(f"it ended undisturbed: {job.end(1)}", pytrace=False)
            time.sleep(0.002)
        return there()

    def disturb(self, kind: str) -> tuple[str, Done]:
        """One start, and what happens to it: after some steps, or early. Returns that in words, and how it ended."""
        goal, job = self.step() + self.rng.randint(1, APART), self.start()
        begun, limit_s = time.monotonic(), self.rng.uniform(1, 6) if kind == EARLY else 90
        trains = self.until(job, limit_s, lambda: self.step() >= goal)
        assert trains or kind == EARLY, "no training"
        time.sleep(self.rng.uniform(0, 0.05))  # into a step or a checkpoint
        when = f"{kind} in step {self.step() + 1}" if trains else f"{kind} after {time.monotonic() - begun:.1f} s"
        done = ACTS[kind](self, job)
        assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
        return when, done


def kill(case: Case, job: Job) -> Done:
    os.kill(case.rng.choice(job.pids()), signal.SIGKILL)
    return job.end(60)


def kill_early(case: Case, job: Job) -> Done:
    """Perhaps before there is anything that could take the signal."""
    for pid in case.rng.sample(pids := job.pids(), min(1, len(pids))):
        os.kill(pid, case.rng.choice([signal.SIGKILL, signal.SIGTERM]))
    if not pids:
        job.kill()
    return job.end(60)


def tell_to_stop(case: Case, job: Job) -> Done:
    for pid in case.rng.sample(job.pids(), case.rng.randint(1, 2)):
        os.kill(pid, signal.SIGTERM)
    done = job.end(60)
    assert done.returncode == EXIT_RESUMABLE and "stopped by" in done.stderr, done.stderr
    return done


def stop(case: Case, job: Job) -> Done:
    pid = case.rng.choice(job.pids())
    who = f"rank {rank_of(pid)} on {os.uname().nodename} (pid {pid})"
    os.kill(pid, signal.SIGSTOP)
    done = job.end(60)
    assert done.returncode == EXIT_RESUMABLE and f"; {who} was last heard of " in done.stderr, done.stderr
    return done


def fill_the_disk(case: Case, job: Job) -> Done:
    """Until it ends: old checkpoints that are deleted make room for new ones."""
    ballast = case.disk.folder / "ballast"
    with open(ballast, "wb", buffering=0) as f:
        while job.process.poll() is None:
            fill(f.fileno())
            time.sleep(0.002)
    ballast.unlink()
    done = job.end(60)
    told = f"jeoparda: rank 0 of 2: {case.run}/"
    assert done.returncode == 1 and told in done.stderr, done.stderr
    assert "No space left on device; nothing is lost: make room" in done.stderr
    return done


def fill(file: int) -> None:
    """To the last byte, with large writes while they fit."""
    for size in (1 << 16, 1 << 10, 1):
        with contextlib.suppress(OSError):
            while os.write(file, bytes(size)) == size:
                pass


def cut_short(case: Case, job: Job) -> Done:
    """The newest checkpoint, after a kill."""
    done = kill(case, job)
    newest = case.checkpoints()[-1]
    os.truncate(newest, case.rng.randrange(newest.stat().st_size))
    return done


EARLY, CUT = "ended early", "cut short"
ACTS = {
    "killed": kill,
    "told to stop": tell_to_stop,
    "stopped": stop,
    "disk full": fill_the_disk,
    CUT: cut_short,
    EARLY: kill_early,
}


def chaos(case: Case, kinds: list[str]) -> list[str]:
    """Starts to which these things happen, one each, and one start to the end. Returns what happened and when."""
    happened, damaged = [], ""
    for kind in kinds:
        when, done = case.disturb(kind)
        happened.append(when)
        if damaged and kind != EARLY:
            assert f"{damaged}: differs from its checksum" in done.stderr, done.stderr
        damaged = str(case.checkpoints()[-1]) if kind == CUT else ""
    done = case.start().end(180)
    assert done.returncode == 0 and "going on from epoch" in done.stdout, done.stderr
    assert f"{damaged}: differs from its checksum" in done.stderr or not damaged
    return happened


@pytest.fixture
def case(ranks: Ranks, tiny_store, tmp_path) -> Iterator[Callable[[int, int], Case]]:
    """`case(seed, epochs)`, on a disk of 4 MiB."""
    disk = Disk(tmp_path / "disk")
    disk.resize(size=4 << 20)

    def made(seed: int, epochs: int) -> Case:
        path = recipe(disk.folder, tiny_store, epochs)
        return Case(ranks, disk, path, random.Random(seed))

    yield made
    for job in ranks.jobs:
        job.kill()
    subprocess.run(["umount", disk.folder], check=True)


def same(case: Case, undisturbed: Path, apart: Callable[..., float], epochs: int) -> None:
    """Bitwise the same weights, and each epoch once in the journal, with the same figures."""
    assert apart(case.run, undisturbed) == 0
    lines, expected = (
        [e for e in read(run / "journal.jsonl") if e["event"] == "epoch"] for run in (case.run, undisturbed)
    )
    assert [e["epoch"] for e in lines] == list(range(1, epochs + 1))
    assert [e["val"] for e in lines] == [e["val"] for e in expected]


@MOUNT
def test_one_of_each_kind(case, undisturbed, apart):
    """Kills alone are in test_interruption.py."""
    mine = case(0, epochs := 20)
    chaos(mine, ["stopped", "disk full", CUT, "told to stop"])
    same(mine, undisturbed(epochs), apart, epochs)


@MOUNT
@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_chaos(case, undisturbed, apart, seed):
    mine, kinds = case(seed, epochs := 60), [*ACTS, *list(ACTS)[:4]]
    mine.rng.shuffle(kinds)
    happened = chaos(mine, kinds)
    same(mine, undisturbed(epochs), apart, epochs)
    print(f"seed {seed}: {len(happened)} disturbed starts: {', '.join(happened)}; the same weights, bit by bit")


# ---- on ever other numbers of ranks

LONG = "epochs: 16, batch: 6, precision: float64, checkpoint: {every_steps: 2}"
SLOW = "optimizer.lr=0.0005"  # steps so small that rounding stays


@pytest.fixture(scope="module")
def long_undisturbed(tiny_store, tmp_path_factory, cli) -> Path:
    folder = tmp_path_factory.mktemp("long")
    done = cli("train", train_recipe(folder, tiny_store, LONG), SLOW)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
def test_other_numbers_of_ranks(ranks: Ranks, long_undisturbed, tiny_store, tmp_path, apart, seed):
    """Killed or told to stop, and started again on one to three ranks."""
    path, run, rng = train_recipe(tmp_path, tiny_store, LONG), tmp_path / "run", random.Random(seed)
    ended = []
    while not ((run / "journal.jsonl").exists() and finished(run)):
        assert len(ended) < 60, ended
        job = ranks.start(n := rng.choice([1, 2, 3]), "mpirun", "train", path, SLOW)
        wait = rng.uniform(2, 7) + len(ended) / 5  # start-up alone takes seconds; longer and longer, to end at all
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(wait)
        pids = job.pids() if job.process.poll() is None else []
        for pid in rng.sample(pids, rng.randint(1, len(pids)) if pids else 0):
            os.kill(pid, rng.choice([signal.SIGKILL, signal.SIGTERM]))
        done = job.end(60)
        ended.append((n, round(wait, 1), done.returncode))
        assert "Traceback" not in done.stderr, done.stderr
    difference = apart(run, long_undisturbed)
    print(f"seed {seed}: {len(ended) - 1} disturbed starts (ranks, s, exit code) {ended}; apart by {difference:.1e}")
    assert len(ended) > 1
    assert difference < 1e-9
    epochs = [e["epoch"] for e in read(run / "journal.jsonl") if e["event"] == "epoch"]
    assert epochs == list(range(1, 17))
