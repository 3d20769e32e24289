"""TensorBoard: an epoch's figures as scalars. The only home of tensorboard."""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

FOLDER = "tensorboard"  # in a run's


def available() -> bool:
    """Whether the package tensorboard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class Board:
    """What TensorBoard shows of a run: `tensorboard --logdir RUN`. For one rank, the one that has the journal."""

    def __init__(self, folder: Path, step: int) -> None:
        """folder: of the event files. step: that the run begins or goes on at; what was written of later ones, before a
        crash, is struck out, as they come again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """An epoch's line of the journal, at its "step"; on the disk when this returns."""
        for tag, value in scalars(line):
            self._writer.add_scalar(tag, value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


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
