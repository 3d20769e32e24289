"""How many threads read, and how far ahead: by a short measurement on the store itself, where it lies now.

A warm page cache wants one or two threads, a cold parallel filesystem wants many, and no file says which it is.
"""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jeoparda.feed.reader import Reader

_THREADS = (1, 2, 4, 8, 16)
_AT_ONCE = 32  # patches, each read for the first time, as it may be cold
_LONG_ENOUGH_S = 0.02  # for each number of threads
_MOST = 8  # such samples for each number of threads
SAMPLE = _AT_ONCE * _MOST * len(_THREADS)  # patches that a measurement takes at the most
_ENOUGH = 0.9  # of the best rate: fewer threads leave more to others
_AHEAD = 2, 8  # batches, at least and at most


@dataclass(frozen=True)
class Pace:
    """What was chosen, and the patches/s that each number of threads reached."""

    threads: int
    ahead: int
    rates: dict[int, float]


def pace(reader: Reader, numbers: np.ndarray, batch: int) -> Pace:
    """numbers: (n,) the patches that will be read, in order; the first of them are read here already. batch: patches.

    The fewest threads with 0.9 of the best rate. Ahead by as many batches as hide the longest wait that was seen, a
    hiccup of the filesystem, behind the time that the others take.
    """
    if not len(numbers):  # a rank may have no patch
        return Pace(_THREADS[0], _AHEAD[0], {})
    sample = min(_AT_ONCE, max(1, len(numbers) // len(_THREADS)))
    samples = iter([numbers[i : i + sample] for i in range(0, len(numbers), sample)])
    most = max(1, min(_MOST, len(numbers) // sample // len(_THREADS)))
    buffer = reader.buffer(sample)
    rates: dict[int, float] = {}
    waits: list[float] = []
    for threads in _THREADS:
        with ThreadPoolExecutor(threads) as pool:
            pool.submit(len, ()).result()
            took = 0.0
            for some in itertools.islice(samples, most):
                start = time.perf_counter()
                for task in reader.submit(pool, some, buffer, threads):
                    task.result()
                waits.append(time.perf_counter() - start)
                # the best of them: a hiccup says nothing about the number of threads
                rates[threads] = max(rates.get(threads, 0.0), len(some) / waits[-1])
                took += waits[-1]
                if took > _LONG_ENOUGH_S:
                    break
    best = max(rates.values())
    threads = next(t for t, rate in rates.items() if rate >= _ENOUGH * best)
    return Pace(threads, int(np.clip(1 + np.ceil(max(waits) * best / batch), *_AHEAD)), rates)
