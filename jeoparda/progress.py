"""Progress: a bar on a terminal, now and then a plain line in a batch log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY_S = 20.0


def track(
    items: Iterable[T], what: str, unit: str, total: int | None = None, amount: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """`items`, while telling stderr how far it is, at which rate, and how long it will take.

    unit: plural, as in "patches". total: of all amounts, None where it is not known. amount: how many units an item
    is.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        with tqdm(desc=what, total=total, unit=f" {unit}", leave=False) as bar:
            for item in items:
                yield item
                bar.update(amount(item))
        return
    start = told = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += amount(item)
        now = time.monotonic()
        if now - told >= LINE_EVERY_S:
            told = now
            print(f"{what}: {_so_far(done, total, unit, now - start)}", file=sys.stderr, flush=True)


def _so_far(done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / seconds
    if not total or not rate:
        return f"{done} {unit}, {rate:.1f} a second"
    minutes, rest = divmod(round((total - done) / rate), 60)
    return f"{done} of {total} {unit}, {rate:.1f} a second, {minutes}:{rest:02d} left"
