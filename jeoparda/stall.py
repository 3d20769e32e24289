"""The stall check: a run in which a rank stands still is ended, so that it can be started again.

A rank that is stopped, stuck, or on a dead node keeps all others waiting in an exchange, for ever: MPI has no time
limit, and Horovod's own check hears only ranks that still answer. So each rank watches itself. The loop says `beat` at
each step; a thread ends the process when no beat has come for too long, and the launcher ends the others. Who is to
blame is read from small files, RUN/ranks/NNN, in which each rank says now and then that it lives and where it stands.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jeoparda.comm import Comm
from jeoparda.files import room
from jeoparda.signals import EXIT_RESUMABLE

LEAST_S, MOST_S = 2.0, 30.0  # between two signs of life: a parallel filesystem bears those of many ranks
START_S = 1800.0  # for meeting, staging, reading a checkpoint, torch.compile
LAST_WORDS_S = 5.0  # for reading the others' signs and for the message, on a filesystem that may hang too
PACKAGE = Path(__file__).parent
EXCHANGES = "comm/"  # the modules in which a rank waits for the others
NAMED = 4  # ranks to blame that are told one by one


@dataclass(frozen=True)
class Sign:
    """A rank's sign of life. beats: how many it has had, of which the last began `doing`, `stood_s` before the sign;
    where: the line of this package that it was in, "" for none; time_s: of the sign, in seconds since 1970 by the clock
    of its node."""

    rank: int
    host: str
    pid: int
    beats: int
    doing: str
    stood_s: float
    where: str
    time_s: float

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.pid})"


class Stillness:
    """How long a loop has stood still, pauses of the whole process left out.

    A process that is stopped and goes on (a suspended job) finds that much time has gone by between two looks that
    were to be `every_s` apart. That is no stall, nor are its other ranks' signs any fresher: it begins to count anew.
    """

    def __init__(self, late_s: float, now_s: float):
        self._late_s, self._looked_s, self._awake_s = late_s, now_s, now_s

    def look(self, now_s: float, beat_s: float) -> float:
        """Seconds since the last beat, or since the process woke up."""
        if now_s - self._looked_s > self._late_s:
            self._awake_s = now_s
        self._looked_s = now_s
        return now_s - max(beat_s, self._awake_s)


class Watch:
    """Ends the process with EXIT_RESUMABLE when no beat has come for `seconds`, within a second more; 0: never.

    All ranks must beat alike, in the same order: a rank with fewer beats is behind. Before the first beat START_S are
    allowed, where that is more. folder: for the signs of life; one rank alone gives none. DiskError where the folder
    cannot be made.
    """

    def __init__(self, seconds: float, folder: Path, rank: int, size: int):
        self._seconds, self._folder, self._rank, self._size = seconds, folder, rank, size
        self._every_s = min(max(seconds / 4, LEAST_S), MOST_S)
        self._beat = (0, "start-up", time.monotonic())
        self._ended = threading.Event()
        self._main = threading.get_ident()  # the loop's thread
        self._threads: list[threading.Thread] = []

    @classmethod
    def none(cls) -> "Watch":
        """One that watches nothing."""
        return cls(0, Path(), 0, 1)

    def beat(self, doing: str) -> None:
        """The loop goes on: it begins with `doing`."""
        self._beat = (self._beat[0] + 1, doing, time.monotonic())

    def __enter__(self) -> "Watch":
        if self._seconds and self._size > 1:
            with room(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._clear()
            self._start(self._live)  # a thread of its own, for the filesystem may hang
        if self._seconds:
            self._start(self._look)
        return self

    def _clear(self) -> None:
        """Take away the signs of an earlier start on more ranks that was killed."""
        for path in self._folder.glob("[0-9]*") if self._rank == 0 else ():
            if int(path.name) >= self._size:
                path.unlink()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(LAST_WORDS_S)
        with suppress(OSError):  # it is not there, or stays and harms nothing: the next start writes over it
            self._path(self._rank).unlink()
            self._folder.rmdir()  # by the last
            self._folder.parent.rmdir()  # and the run, where it was refused and nothing is in it

    def _start(self, what: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=what, daemon=True))
        self._threads[-1].start()

    def _look(self) -> None:
        still = Stillness(max(self._seconds / 4, LEAST_S), time.monotonic())
        while not self._ended.wait(min(1.0, self._seconds / 8)):
            beats, _, beat_s = self._beat
            stood_s = still.look(time.monotonic(), beat_s)
            if stood_s > (self._seconds if beats else max(self._seconds, START_S)):
                self._end(stood_s)

    def _live(self) -> None:
        told = False
        while not self._ended.is_set():
            try:
                self._sign()
            except OSError as e:  # the run itself may need no room just now
                if not told:
                    why = f"rank {self._rank}: {self._folder}: {e.strerror}"
                    _say(f"{why}: while this is so, a stall is noticed, but not who is to blame")
                told = True
            self._ended.wait(self._every_s)

    def _sign(self) -> None:
        """Not made durable: it is of no use after a crash."""
        beats, doing, beat_s = self._beat
        stood_s = time.monotonic() - beat_s
        sign = Sign(self._rank, socket.gethostname(), os.getpid(), beats, doing, stood_s, self._where(), time.time())
        draft = self._folder / f".{self._rank:03d}.part"
        try:
            draft.write_text(json.dumps(asdict(sign)))
            draft.replace(self._path(self._rank))
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def _path(self, rank: int) -> Path:
        return self._folder / f"{rank:03d}"

    def _end(self, stood_s: float) -> None:
        """The lowest rank that lives speaks for all; the others wait for the launcher to end them."""
        last = threading.Timer(2 * LAST_WORDS_S, os._exit, (EXIT_RESUMABLE,))
        last.daemon = True
        last.start()
        old_s = 2 * self._every_s
        signs, now_s = [_read(self._path(rank)) for rank in range(self._size)], time.time()
        if any(s and now_s - s.time_s <= old_s for s in signs[: self._rank]):
            time.sleep(LAST_WORDS_S)
        where = self._where() or "not in this package"
        _say(
            f"rank {self._rank} of {self._size}: no step for {stood_s:.0f} s, waiting in {self._beat[1]} ({where}); "
            f"{blame(signs, self._rank, now_s, old_s)}: ended; start the run again, it goes on from its last checkpoint"
        )
        os._exit(EXIT_RESUMABLE)

    def _where(self) -> str:
        """The line that the loop is in, as in "comm/horovod.py, line 7, sum"."""
        for frame, line in traceback.walk_stack(sys._current_frames()[self._main]):
            if (path := Path(frame.f_code.co_filename)).is_relative_to(PACKAGE):
                return f"{path.relative_to(PACKAGE)}, line {line}, {frame.f_code.co_name}"
        return ""


def watch(seconds: float, run: Path, comm: Comm) -> Watch:
    """A watch over this rank, to be used as a context; `seconds` 0: over nothing."""
    return Watch(seconds, run / "ranks", comm.rank, comm.size)


def blame(signs: list[Sign | None], me: int, now_s: float, old_s: float) -> str:
    """Which ranks keep the others waiting, in words: those that are silent, else those that are behind, else those
    that are elsewhere than in an exchange.

    signs: of all ranks, None where there is none; me: the rank that asks. A sign older than `old_s` at `now_s` is
    silence. The nodes' clocks must agree to less than that.
    """
    if len(signs) == 1:
        return "it runs alone"
    if (mine := signs[me]) is None or now_s - mine.time_s > old_s:
        return "who is to blame is not known, for signs of life could not be written"
    known = [s for s in signs if s]
    named = [f"rank {rank} has given no sign of life" for rank, s in enumerate(signs) if not s]
    named += [
        f"{s} was last heard of {now_s - s.time_s:.0f} s ago, in {s.doing}" for s in known if now_s - s.time_s > old_s
    ]
    if not named:
        most = max(s.beats for s in known)
        behind = [s for s in known if s.beats < most]
        elsewhere = [s for s in known if s.where and not s.where.startswith(EXCHANGES)]
        named = [
            f"{s} lives, but has stood for {now_s - s.time_s + s.stood_s:.0f} s in {s.doing} ({s.where})"
            for s in behind or elsewhere
        ]
    if not named:
        return "all ranks live and wait for each other"
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    return ", ".join(named[:NAMED] + more)


def _read(path: Path) -> Sign | None:
    try:
        return Sign(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _say(words: str) -> None:
    print(f"jeoparda: {words}", file=sys.stderr, flush=True)
