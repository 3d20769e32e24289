"""TensorBoard: an epoch's figures as scalars. The only home of tensorboard."""

import importlib.util
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from jeoparda.files import room

FOLDER = "tensorboard"  # in a run's


def available() -> bool:
    """Whether the package tensorboard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class Board:
    """What TensorBoard shows of a run: `tensorboard --logdir RUN`. For one rank, the one that has the journal.

    Events are written by the loop itself, at once: SummaryWriter's thread would tell of a full disk by a traceback.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """folder: of the event files. step: that the run begins or goes on at; what was written of later ones, before a
        crash, is struck out, as they come again. DiskError where it cannot be written."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder, self._event, self._summary = folder, Event, Summary
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}"
        with room(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / name, "ab", buffering=0)  # noqa: SIM115, for `close` to end
            self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, line: dict[str, Any]) -> None:
        """An epoch's line of the journal, at its "step"; with the kernel when this returns."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line)]
        self._add(step=line["step"], summary=self._summary(value=values))

    def _add(self, **fields: Any) -> None:
        with room(self._folder):
            self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        self._file.close()


def scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of all numbers of a line that are known. Of what each rank has: the means of the parts of its time
    and the most memory; the rest is in the journal."""
    ranks = line.get("split_s_per_rank", [])
    split = {part: mean(r[part] for r in ranks) for part in (ranks[0] if ranks else ())}
    memory = {name: max(known) for name, each in line.get("memory", {}).items() if (known := _known(each))}
    yield from _numbers(line | {"split_s": split, "memory": memory})


def _known(values: list[float | None]) -> list[float]:
    return [v for v in values if v is not None]


def _numbers(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("epoch", "step") and math.isfinite(value):
            yield prefix + name, value
