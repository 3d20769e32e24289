"""Ranks that train when they are told to, an epoch at a time: `python -m benchmarks.train.ranks KEYS`, a recipe's as
JSON, under mpirun or alone. In the benchmark's process a `Team` stands for them.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.turns import in_turn

ROOT = Path(__file__).parents[2]

Command = tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """images_per_s: of all ranks. step_s: of rank 0, on average. resident_mb: the most that each rank ever held."""

    images_per_s: float
    step_s: float
    resident_mb: tuple[float, ...]

    @property
    def rate(self) -> float:
        return self.images_per_s


# ---- in a rank's process


def main(keys: str) -> None:
    """Answer each line on rank 0's stdin by an epoch."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not mix with the answers
    os.dup2(2, 1)
    from benchmarks.train.loop import epoch, training
    from jeoparda.comm import start
    from jeoparda.meter import resident_bytes

    given = json.loads(keys)
    comm = start(given.get("comm", "auto"))
    with training(comm, **given) as (t, _):
        epoch(t)  # what is made once is made
        if comm.rank == 0:
            print("ready", file=answers, flush=True)
        while comm.broadcast(sys.stdin.readline() if comm.rank == 0 else None, "told"):
            images, seconds = epoch(t)
            ranks = comm.gather((images / seconds, resident_bytes() / 1e6), "turn")
            if comm.rank == 0:
                rates, resident = zip(*ranks, strict=True)
                print(json.dumps([sum(rates), seconds / t.steps, resident]), file=answers, flush=True)
    comm.close()


# ---- in the benchmark's own process


def command(core: int, keys: dict[str, Any]) -> Command:
    """A rank of one thread on one core."""
    program = (sys.executable, "-m", "benchmarks.train.ranks", json.dumps(keys))
    return "taskset", "-c", str(core), "env", "OMP_NUM_THREADS=1", *program


def together(cores: list[int], keys: dict[str, Any]) -> Command:
    """A rank on each of the cores, under Open MPI's mpirun, as a program of its own each."""
    parts = (("-np", "1", "--bind-to", "none", *command(core, keys), ":") for core in cores)
    return "mpirun", "--oversubscribe", *[word for part in parts for word in part][:-1]


class Team:
    """Processes that have their turns at the same time. Between turns they are stopped (SIGSTOP): Horovod talks to the
    other ranks a thousand times a second, also when there is nothing to exchange."""

    def __init__(self, *commands: Command, env: dict[str, str]) -> None:
        # a rank that is stopped keeps the others waiting, which Horovod would complain of
        pipe, env = subprocess.PIPE, os.environ | env | {"HOROVOD_STALL_CHECK_DISABLE": "1"}
        self._started = [subprocess.Popen(c, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True) for c in commands]
        for p in self._started:
            self._line(p)
        self._all("suspend")

    def turn(self) -> Turn:
        self._all("resume")
        for p in self._started:
            assert p.stdin
            p.stdin.write("go\n")
            p.stdin.flush()
        answers = [json.loads(self._line(p)) for p in self._started]
        self._all("suspend")
        rates, steps, resident = zip(*answers, strict=True)
        return Turn(sum(rates), statistics.mean(steps), tuple(mb for ranks in resident for mb in ranks))

    def _all(self, what: str) -> None:
        for p in (psutil.Process(p.pid) for p in self._started if p.poll() is None):
            for process in p.children(recursive=True) or [p]:  # mpirun would tell of each signal
                getattr(process, what)()

    def _line(self, p: subprocess.Popen[str]) -> str:
        assert p.stdout
        line = p.stdout.readline()
        if not line:
            raise SystemExit(f"a rank ended with exit code {p.wait()}; what it said stands above")
        return line

    def close(self) -> None:
        self._all("resume")
        for p in self._started:
            assert p.stdin
            p.stdin.close()
            p.wait()


def compare(commands: Mapping[str, tuple[Command, ...]], env: dict[str, str], rounds: int) -> dict[str, list[Turn]]:
    """Turns of every team, by its name (`in_turn`)."""
    teams: dict[str, Team] = {}
    try:
        for name, of_team in commands.items():
            teams[name] = Team(*of_team, env=env)
        return in_turn({name: team.turn for name, team in teams.items()}, rounds)
    finally:
        for team in teams.values():
            team.close()


def table(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """By team: medians, and the rates of all rounds."""
    return {
        name: {
            "images_per_s": round(statistics.median(t.images_per_s for t in found), 2),
            "step_s": round(statistics.median(t.step_s for t in found), 4),
            "resident_mb": [round(max(rank)) for rank in zip(*(t.resident_mb for t in found), strict=True)],
            "rounds": [round(t.images_per_s, 2) for t in found],
        }
        for name, found in turns.items()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
