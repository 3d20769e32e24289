"""Dates of images and labels, and which of them become the dates of a patch."""

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta

from jeoparda.errors import RecipeError

_IN_NAME = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")

Steps = list[list[int | None]]  # of each patch, an acquisition's number a date, None for a gap


def moment(when: str) -> datetime:
    """Of "YYYY-MM-DD", with or without a time; in UTC, as all of them are. ValueError for anything else."""
    return datetime.fromisoformat(when.removesuffix("Z")).replace(tzinfo=None)


def days_apart(a: str, b: str) -> int:
    """Between two calendar days; the hour does not count."""
    return abs((moment(a).date() - moment(b).date()).days)


def date_in(name: str) -> str:
    """The first calendar day in a file name (2018-02-14, 2018_02_14, 20180214), as "YYYY-MM-DD"; "" without one."""
    for year, _, month, day in _IN_NAME.findall(name):
        try:
            return date(int(year), int(month), int(day)).isoformat()
        except ValueError:  # 31 of April: digits that are no date
            continue
    return ""


def every(clear: Sequence[bool], count: int) -> Steps:
    """One patch: all acquisitions in order, `count` at most; gaps where they are not clear, and at the end."""
    found: list[int | None] = [i if ok else None for i, ok in enumerate(clear)]
    return [found + [None] * (count - len(found))]


def stepped(dates: Sequence[str], clear: Sequence[bool], start: str, step_days: float, count: int) -> Steps:
    """One patch: date k is the clear acquisition nearest to start + k steps, no more than half a step before it and
    less than that after it, so that an acquisition is used once at most; the earlier of two that are equally near."""
    step, first = timedelta(days=step_days), moment(start)
    found: list[int | None] = []
    for k in range(count):
        away = [(moment(d) - (first + k * step), i) for i, d in enumerate(dates) if clear[i]]
        near = [(abs(x), x, i) for x, i in away if -step / 2 <= x < step / 2]
        found.append(min(near)[2] if near else None)
    return [found]


def windows(clear: Sequence[bool], count: int, stride: int) -> Steps:
    """A patch for every `count` clear acquisitions in a row, `stride` acquisitions further each time."""
    there = [i for i, ok in enumerate(clear) if ok]
    return [list(there[i : i + count]) for i in range(0, len(there) - count + 1, stride)]


def checked(when: str, key: str) -> str:
    """`when`, if it is a date. RecipeError names the key otherwise."""
    try:
        moment(when)
    except ValueError as e:
        raise RecipeError(f"{key} = {when!r}: expected a date, as 2018-02-14") from e
    return when
