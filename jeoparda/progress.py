"""Progress: a bar on a terminal, now and then a plain line in a batch log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY_S = 20.0


def track(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """`items`, while telling stderr how far it is. `unit`: plural, as in "patches"."""
    total = total if total is not None else len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        yield from tqdm(items, what, total, unit=f" {unit}", leave=False)
        return
    start = told = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - told >= LINE_EVERY_S:
            told = now
            print(f"{what}: {done} of {total} {unit}, {done / (now - start):.1f} a second", file=sys.stderr, flush=True)
