"""What tests stand on: what this machine has (`needs`), a tiny archive and store, the command line, ranks.

A test says what it cannot do without: `@pytest.mark.needs("mpirun", "horovod-mpi")`. Where that is missing the
test is skipped, with the reason and the command that would enable it. JEOPARDA_REQUIRE=all, or a list as in
JEOPARDA_REQUIRE=mpirun,slurm, turns such skips into failures: for machines that are known to have these.
"""

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny tensors on busy cores


# ---- needs


def _program(*names: str) -> str:
    where = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # daemons live there, and few users look there
    missing = [n for n in names if shutil.which(n, path=where) is None]
    return f"{', '.join(missing)} not found" if missing else ""


def _module(name: str) -> str:
    top = name.partition(".")[0]
    there = importlib.util.find_spec(top) is not None and importlib.util.find_spec(name) is not None
    return "" if there else f"Python module {name} not found"


def _horovod(what: str) -> str:
    if missing := _module("horovod"):
        return missing
    code = f"import horovod.torch as h, sys; sys.exit(0 if h.{what}_built() else 3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    if done.returncode == 0:
        return ""
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return f"Horovod was built without {what}" if done.returncode == 3 else f"Horovod cannot be imported: {last[0]}"


def _gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "torch sees no GPU"


def _mount() -> str:
    """In a namespace of its own, which ends with the process."""
    if missing := _program("mount", "umount", "unshare"):
        return missing
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip()


_SETUP = "`make setup` as root"
# name -> (what is missing, "" where nothing is; the command that would enable it)
NEEDS: dict[str, tuple[Callable[[], str], str]] = {
    "mpirun": (lambda: _program("mpirun"), f"apt-get install openmpi-bin libopenmpi-dev, or {_SETUP}"),
    "mpi4py": (lambda: _module("mpi4py"), "apt-get install libopenmpi-dev, then `make setup`"),
    "horovod": (lambda: _module("horovod"), f"apt-get install g++ cmake, then `make setup`; or {_SETUP}"),
    "horovod-mpi": (lambda: _horovod("mpi"), "apt-get install g++ cmake libopenmpi-dev, then `make setup`"),
    "horovod-gloo": (lambda: _horovod("gloo"), "apt-get install g++ cmake, then `make setup`"),
    "dali": (lambda: _module("nvidia.dali"), "pip install 'jeoparda[dali-cuda13]' (Linux on x86-64)"),
    "native": (lambda: _module("jeoparda.feed._native"), "apt-get install gcc python3-dev, then `make setup`"),
    "slurm": (
        lambda: _program("slurmctld", "slurmd", "srun", "munged"),
        f"apt-get install slurmctld slurmd slurm-client munge, or {_SETUP}",
    ),
    "submitit": (lambda: _module("submitit"), "pip install 'jeoparda[slurm]'"),
    "mount": (_mount, "tests as root, in a container with CAP_SYS_ADMIN"),
    "h5ls": (lambda: _program("h5ls", "h5dump"), "apt-get install hdf5-tools"),
    "gpu": (_gpu, "a machine with an NVIDIA GPU and a CUDA build of torch"),
    "shared": (
        lambda: "" if SHARED.is_dir() else f"{SHARED} not found",
        "put the real data beside the checkout, in ../shared/data",
    ),
}


@functools.cache
def missing(name: str) -> str:
    """Why `name` cannot be had, and how it could; "" where it is there."""
    probe, enable = NEEDS[name]
    why = probe()
    return f"needs {name}: {why}; to enable: {enable}" if why else ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = os.environ.get("JEOPARDA_REQUIRE", "").replace(" ", "").split(",")
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            if name not in NEEDS:
                pytest.fail(f"marker needs({name!r}) is unknown; there are {', '.join(NEEDS)}", pytrace=False)
            if why := missing(name):
                wanted = "all" in required or name in required
                (pytest.fail if wanted else pytest.skip)(why, **({"pytrace": False} if wanted else {}))


# ---- real patches and scene that ship with the package


@pytest.fixture(scope="session")
def real_patches() -> Path:
    """Archive of 30 real BigEarthNet patches, the labels of one malformed as published."""
    return ROOT / "jeoparda" / "demo" / "data" / "bigearthnet-v1"


@pytest.fixture(scope="session")
def real_scene() -> Path:
    """Folder of the 13 bands of a real Sentinel-2 L1C crop."""
    return ROOT / "jeoparda" / "demo" / "data" / "s2-l1c-brandenburg" / "IMG_DATA"


# ---- a tiny archive and store


@pytest.fixture(scope="session")
def tiny_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 patches of four classes, each a block of its own. Shared: not to be changed."""
    from tests.archive import make_archive

    return make_archive(tmp_path_factory.mktemp("tiny") / "archive", 48)


@pytest.fixture(scope="session")
def tiny_store(tiny_archive: Path) -> Path:
    """The tiny archive as a store of seven shards, by `jeoparda ingest` itself. Shared: not to be changed."""
    from jeoparda.ingest import IngestRecipe, SplitRecipe, run

    store = tiny_archive.parent / "store"
    split = SplitRecipe(block_m=1200, val=0.25, test=0.25, stratify=False)  # bounds of tests hold for these patches
    run(IngestRecipe(archive=tiny_archive, store=store, split=split, patches_per_shard=7, workers=1), lambda _: None)
    return store


# ---- running the package


def environment(**more: str) -> dict[str, str]:
    """The environment of a subprocess: the checkout's package, one thread a rank, Open MPI's leave for root."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **root, **more}


Done = subprocess.CompletedProcess[str]
JEOPARDA = (sys.executable, "-m", "jeoparda")


@pytest.fixture(scope="session")
def cli() -> Callable[..., Done]:
    """`cli("train", recipe, "batch=8")`: the command line in a process of its own; its exit code is the caller's."""

    def run(*words: object, timeout: float = 120, **more: str) -> Done:
        command = [*JEOPARDA, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(**more))

    return run


@dataclass
class Job:
    """Ranks that were started. `end` waits for all of them and gives exit code and output."""

    process: subprocess.Popen[str]

    def end(self, timeout: float = 120) -> Done:
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = self.process.communicate()
            pytest.fail(f"ranks still ran after {timeout} s\n{out[-2000:]}\n{err[-4000:]}", pytrace=False)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def kill(self) -> None:
        """End the launcher and every process that it started."""
        if self.process.poll() is None:
            for pid in [*descendants(self.process.pid), self.process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def pids(self) -> list[int]:
        """The ranks themselves: the descendants that run `python -m jeoparda`."""
        return [pid for pid in descendants(self.process.pid) if command_of(pid)[1:3] == ["-m", "jeoparda"]]


def command_of(pid: int) -> list[str]:
    """The words that started the process; none when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    try:
        children = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    except OSError:
        return []
    return [*children, *(d for c in children for d in descendants(c))]


@dataclass
class Ranks:
    """Starts the command line on several ranks: `ranks(2, "mpirun", "train", recipe)` waits, `start` does not."""

    jobs: list[Job]

    def start(self, n: int, launcher: str, *words: object, program: tuple[str, ...] = JEOPARDA, **more: str) -> Job:
        launch = {
            "mpirun": ["mpirun", "-np", str(n), "--oversubscribe", "--bind-to", "none"],
            "horovodrun": [str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", str(n)],
            "single": [],
        }[launcher]
        job = Job(
            subprocess.Popen(
                [*launch, *program, *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(**more),
            )
        )
        self.jobs.append(job)
        return job

    def __call__(self, n: int, launcher: str, *words: object, timeout: float = 180, **more: str) -> Done:
        return self.start(n, launcher, *words, **more).end(timeout)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    started = Ranks([])
    yield started
    for job in started.jobs:
        job.kill()


@pytest.fixture(scope="session")
def apart() -> Callable[..., float]:
    """`apart(run_a, run_b)`: the largest difference between the last weights, averages and buffers of two
    runs."""

    def largest(a: Path, b: Path, name: str = "") -> float:
        from jeoparda import checkpoint

        def weights(run: Path):  # type: ignore[no-untyped-def]
            if name:
                state = checkpoint.load(run / "checkpoints" / name)
            else:
                found = checkpoint.newest(run)
                assert found is not None, f"{run} holds no checkpoint"
                state = found[1]
            return state["model"] | {f"average.{k}": w for k, w in (state["average"] or {}).items()}

        one, other = weights(a), weights(b)
        assert one.keys() == other.keys()
        return max((one[k].double() - other[k].double()).abs().max().item() for k in one)

    return largest


@pytest.fixture
def keep_signals() -> Iterator[None]:
    """Training sets signal handlers; put back those of the test process."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(n) for n in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
