"""TensorBoard: an epoch's figures as scalars. The only home of tensorboard."""

import importlib.util
import io
import math
import os
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

        self._folder, self._event, self._summary, self._records = folder, Event, Summary, RecordWriter
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}"
        with room(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._add(file_version="brain.Event:2")
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, line: dict[str, Any]) -> None:
        """An epoch's line of the journal, at its "step"; with the kernel when this returns."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line)]
        self._add(step=line["step"], summary=self._summary(value=values))

    def _add(self, **fields: Any) -> None:
        record = io.BytesIO()
        self._records(record).write(self._event(wall_time=time.time(), **fields).SerializeToString())
        raw, end = record.getvalue(), os.fstat(self._file).st_size
        with room(self._folder):
            try:
                while raw:  # a disk that fills takes a part and says why with the next
                    raw = raw[os.write(self._file, raw) :]
            except OSError:
                os.ftruncate(self._file, end)  # readers go no further than a torn record
                raise

    def close(self) -> None:
        os.close(self._file)


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
