"""Rates of several contenders from one run: each in its own process, measured in turn, warm or cold.

A contender's process calls `serve`; the benchmark holds a `Contender` for each. Nothing of jeoparda is imported here,
so that a peer's interpreter needs none of it.
"""

import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.turns import in_turn

ROOT = Path(__file__).parents[2]
WARM_S = 3.0  # a warm turn lasts whole epochs, at least this long

Epoch = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class Turn:
    """What a contender reached. cpu_us: microseconds of processors, user and system, of all its processes, a patch.
    batch: what it delivered, name -> (shape, dtype), of the first batch; labels and numbers left out."""

    patches_per_s: float
    cpu_us: float
    batch: dict[str, Any]

    @property
    def rate(self) -> float:
        return self.patches_per_s


# ---- in a contender's process


def serve(epoch: Epoch) -> None:
    """Answer each line on stdin, a number of seconds, by whole epochs that last as long, at least one.

    A batch is a dict whose "labels" are as many as it has patches. The consumer takes it and lets it go.
    """
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not mix with the answers
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        spent, start, patches, first = cpu_s(), time.perf_counter(), 0, None
        while not patches or time.perf_counter() - start < float(line):
            for batch in epoch():
                patches += len(batch["labels"])
                first = first or _shapes(batch)
        took = time.perf_counter() - start
        answer = {
            "patches_per_s": patches / took,
            "cpu_us": (cpu_s() - spent) / patches * 1e6,
            "batch": first,
        }
        print(json.dumps(answer), file=answers, flush=True)


def _shapes(batch: dict[str, Any]) -> dict[str, Any]:
    pixels = {k: v for k, v in batch.items() if k not in ("labels", "number", "__key__")}
    return {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in pixels.items()}


def cpu_s() -> float:
    """Processor seconds, user and system, of this process and all that it started, ended ones included."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:4]) for p in (me, *me.children(recursive=True)))


# ---- in the benchmark's own process


class Contender:
    """A process that delivers batches when it is told to."""

    def __init__(self, *command: str) -> None:
        """command: python and its arguments, which end in a call of `serve`."""
        self._command = command
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def turn(self, seconds: float) -> Turn:
        assert self._process.stdin
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return Turn(**json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command)}: ended with exit code {self._process.wait()}")
        return line

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def compare(
    commands: dict[str, tuple[str, ...]], folders: list[Path], cold: bool, rounds: int, alike: Iterable[str] = ()
) -> dict[str, list[Turn]]:
    """Turns of every contender, by its name (`in_turn`). Warm: the files of `folders` are in the page cache. Cold: none
    of their pages is, before each turn of one epoch. The contenders `alike` must deliver batches of the same shapes and
    types."""
    contenders = {name: Contender(*command) for name, command in commands.items()}

    def turn(contender: Contender) -> Turn:
        prepare(folders, cold)
        return contender.turn(0 if cold else WARM_S)

    try:
        turns = in_turn({name: partial(turn, c) for name, c in contenders.items()}, rounds)
    finally:
        for c in contenders.values():
            c.close()
    for a, b in itertools.pairwise(alike):
        if turns[a][0].batch != turns[b][0].batch:
            raise SystemExit(f"{a} delivers {turns[a][0].batch}, {b} delivers {turns[b][0].batch}")
    return turns


def table(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """By contender: medians, and the rates of all rounds."""
    return {
        name: {
            "patches_per_s": round(statistics.median(t.patches_per_s for t in found), 1),
            "cpu_us_per_patch": round(statistics.median(t.cpu_us for t in found), 1),
            "rounds": [round(t.patches_per_s, 1) for t in found],
        }
        for name, found in turns.items()
    }


# ---- the page cache


def prepare(folders: list[Path], cold: bool) -> None:
    """All the folders' files into the page cache, or out of it. SystemExit when the kernel does not do so."""
    files = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    for path in files:
        drop(path) if cold else warm(path)
    pages = sum(p.stat().st_size for p in files)
    there = sum(resident(p) * p.stat().st_size for p in files) / pages
    if there > 0.001 if cold else there < 0.999:
        raise SystemExit(
            f"{there:.1%} of {pages / 1e9:.2f} GB are in the page cache, which was to be {['all', 'none'][cold]}"
        )


def warm(path: Path) -> None:
    if resident(path) < 1:
        with open(path, "rb", buffering=0) as f:
            while f.read(8 << 20):
                pass


def drop(path: Path) -> None:
    """The file's pages leave the cache, written ones once they are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def resident(path: Path) -> float:
    """The share of a file's pages that are in the page cache, by mincore(2), which loads none."""
    data = np.memmap(path, np.uint8, "r")
    found = np.zeros(-(-len(data) // os.sysconf("SC_PAGESIZE")), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(len(data)), ctypes.c_void_p(found.ctypes.data)):
        raise OSError(ctypes.get_errno(), f"mincore of {path}")
    return float((found & 1).mean())


def disk(folder: Path) -> str:
    """The block device below a folder, in a line."""
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    queue = (device if (device / "queue").exists() else device.parent) / "queue"
    if not queue.exists():
        return "no block device (a network or memory filesystem)"
    about = {n: (queue / n).read_text().strip() for n in ("rotational", "read_ahead_kb", "scheduler")}
    virtual = ", virtual: the host may hold its blocks in memory" if device.name.startswith(("vd", "xvd")) else ""
    return f"{device.name}, {', '.join(f'{k} {v}' for k, v in about.items())}{virtual}"
