"""Taking turns: what is measured in one run, in an order that turns about. Nothing but Python is imported here."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Rated(Protocol):
    @property
    def rate(self) -> float:
        """Of whatever is done, a second."""
        ...


def in_turn(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each side gives, by its name: each once a round, in reversed order every second round. A round before them
    does not count."""
    turns: dict[str, list[T]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name in list(sides) if i % 2 else reversed(list(sides)):
            turns[name].append(sides[name]())
    return {name: found[1:] for name, found in turns.items()}


def ratio(turns: Mapping[str, Sequence[Rated]], one: str, other: str) -> float:
    """The median over the rounds of one's rate over the other's in the same round."""
    return statistics.median(a.rate / b.rate for a, b in zip(turns[one], turns[other], strict=True))
