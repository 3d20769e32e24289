"""A real Slurm for the tests of this folder: started once, stopped at the end."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

START, STOP = ROOT / "slurm" / "cluster" / "start.sh", ROOT / "slurm" / "cluster" / "stop.sh"


def start(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [START, folder], capture_output=True, text=True, timeout=180, env={**os.environ, **settings}, check=False
    )


def stop(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([STOP, folder], capture_output=True, text=True, timeout=60, check=False)


def short_folder() -> Path:
    """Sockets lie in it, whose paths may have 107 characters: pytest's own folders can be too long."""
    return Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))


def marked(folder: Path) -> list[int]:
    """Processes that a cluster's start script started, and what they started in turn."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_CLUSTER_DIR={folder}".encode() in words:
            found.append(int(path.parent.name))
    return found


@dataclass
class Cluster:
    folder: Path
    waiting: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        lines = (self.folder / "env").read_text().replace("export ", "").split()
        return environment(**dict(word.split("=", 1) for word in lines))

    def call(self, *words: object) -> str:
        """stdout of a Slurm command."""
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=60, env=self.env, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def submit(self, *words: object, ranks: tuple[int, int] = (2, 1), jobs: Path) -> subprocess.Popen[str]:
        """`jeoparda submit --wait` in the background; `ranks`: nodes, and ranks on each."""
        size = ["--nodes", ranks[0], "--ranks-per-node", ranks[1]]
        command = [sys.executable, "-m", "jeoparda", "submit", "--site", "local-cluster", "--wait", "--folder", jobs]
        process = subprocess.Popen(
            [*map(str, [*command, *size, *words])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
        )
        self.waiting.append(process)
        return process


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    folder = short_folder()
    accounting = all(shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin") for p in ("slurmdbd", "mariadbd"))
    done = start(folder, DBD=str(int(accounting)))
    try:
        assert done.returncode == 0, done.stderr
        made = Cluster(folder)
        yield made
        for process in made.waiting:
            process.kill()
    finally:
        assert stop(folder).returncode == 0


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """`until(test, timeout)`: wait for `test()` to hold."""

    def wait(test: Callable[[], object], timeout: float = 90) -> None:
        end = time.monotonic() + timeout
        while not test():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.1)

    return wait


def job_of(jobs: Path) -> str:
    """The number of the only job of that folder, "" before there is one."""
    found = {m[1] for p in jobs.glob("*_submission.sh") if (m := re.match(r"(\d+)_", p.name))}
    return found.pop() if found else ""
