"""How many threads read, and how far ahead: by a short measurement on the store itself, where it lies now.

A warm page cache wants one or two threads, a cold parallel filesystem wants many, and no file says which it is.
"""

import itertools
import time
from dataclasses import dataclass

import numpy as np

from jeoparda.feed.reader import Pool, Reader

_THREADS = (1, 2, 4, 8, 16)
_PART = 16  # patches that a thread reads by itself, each for the first time, as it may be cold
_PARTS = 4  # at once, or as many as there are threads
_LONG_ENOUGH_S = 0.05  # for each number of threads
_MOST = 4  # samples for each number of threads
SAMPLE = _MOST * _PART * sum(max(_PARTS, t) for t in _THREADS)  # patches that a measurement takes at the most
_ENOUGH = 0.95  # of the best rate: fewer threads leave more to others
_AHEAD = 2, 8  # batches, at least and at most
_AHEAD_IN_MEMORY = 4  # a consumer that is woken while all cores are busy waits its turn


@dataclass(frozen=True)
class Pace:
    """What was chosen, and the patches/s that each number of threads reached."""

    threads: int
    ahead: int
    rates: dict[int, float]


def pace(reader: Reader, numbers: np.ndarray, batch: int) -> Pace:
    """numbers: (n,) the patches that will be read, in order; the first of them are read here already. batch: patches.

    The fewest threads with 0.95 of the best rate. Ahead by as many batches as hide the longest wait that was seen, a
    hiccup of the filesystem, behind the time that the others take.
    """
    if not len(numbers):  # a rank may have no patch
        return Pace(_THREADS[0], _AHEAD[0], {})
    if reader.in_memory(numbers):  # two threads fill what one leaves of the memory's rate
        return Pace(2, _AHEAD_IN_MEMORY, {})
    part = int(np.clip(len(numbers) * _PART // SAMPLE, 1, _PART))
    parts = iter([numbers[i : i + part] for i in range(0, len(numbers), part)])
    buffers = [reader.buffer(part) for _ in range(max(_THREADS))]
    rates: dict[int, float] = {}
    waits: list[float] = []
    for threads in _THREADS:
        with Pool(threads) as pool:
            took = 0.0
            for _ in range(_MOST):
                some = list(itertools.islice(parts, max(_PARTS, threads)))
                if not some or took > _LONG_ENOUGH_S:
                    break
                start = time.perf_counter()
                begun = [reader.submit(pool, own, buffer, 1) for own, buffer in zip(some, buffers, strict=False)]
                for task in itertools.chain(*begun):
                    task.result()
                waits.append(time.perf_counter() - start)
                # the best of them: a hiccup says nothing about the number of threads
                rates[threads] = max(rates.get(threads, 0.0), sum(map(len, some)) / waits[-1])
                took += waits[-1]
    best = max(rates.values())
    threads = next(t for t, rate in rates.items() if rate >= _ENOUGH * best)
    return Pace(threads, int(np.clip(1 + np.ceil(max(waits) * best / batch), *_AHEAD)), rates)
