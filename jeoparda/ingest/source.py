"""What ingest asks of an archive. A source is a module with these four functions; its section of the recipe says how.

    describe(archive, section) -> Contents             what the store will hold; may look at a file or two
    units(archive, section, contents) -> Iterator      what is planned one by one, in store order: names, rows, scenes
    plan(archive, section, contents, unit) -> list     the patches of a unit, without reading their pixels if possible
    read(archive, section, contents, patches, payload) -> Iterator   the pixels of a shard's patches, in order

`describe` and `units` run once, in `init`; `plan` and `read` run in any worker, on any node, in any order, and must
give the same answer there. A unit is picklable. A patch that cannot be used is a Reject instead, one that is not
wanted is LeftOut, and the rest goes on; what makes the whole archive unusable is an ArchiveError.

A source may also have `AT_ONCE`, the number of units that make a task of planning (256 without), and

    payloads(archive, section, contents, wanted) -> Iterator    (shard number, what its worker cannot fetch itself)

where `wanted` gives (shard number, its patches) in order: for archives that can only be read from end to end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jeoparda.store import Contents, Reject

Transform = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Planned:
    """A patch that is to be read: one entry of the plan, JSON types all through.

    id: unique in the store. source: what it comes from, as a path relative to the archive. crs, transform: of its
    finest grid. where: what `read` needs to find it again, paths relative to the archive. classes: class numbers it
    carries. split: the archive's own, "" where it has none.
    """

    id: str
    source: str
    crs: str
    transform: Transform
    date: str
    classes: tuple[int, ...]
    where: dict[str, Any] = field(default_factory=dict)
    country: str = ""
    split: str = ""
    dates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Patch:
    """The pixels of a patch: arrays as Layout.fields() names and shapes them. classes: class numbers it carries."""

    arrays: dict[str, np.ndarray]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class LeftOut:
    """A patch that is sound but not wanted: counted by `reason`, a phrase that patches share ("no label in ...")."""

    id: str
    reason: str


@dataclass(frozen=True)
class Note:
    """Something that the user should know of a unit, such as an assumption; each text is said once."""

    text: str


Found = Planned | Reject | LeftOut | Note


class Source(Protocol):
    """A source module. `section`: the source's own part of the recipe."""

    def describe(self, archive: Path, section: Any) -> Contents: ...

    def units(self, archive: Path, section: Any, contents: Contents) -> Iterator[Any]: ...

    def plan(self, archive: Path, section: Any, contents: Contents, unit: Any) -> Sequence[Found]: ...

    def read(
        self, archive: Path, section: Any, contents: Contents, patches: list[Planned], payload: Any
    ) -> Iterator[Patch | Reject]:
        """One for each of `patches`, in order. `payload`: what the source's `payloads` gave, None without."""
        ...
