"""How many threads read, and how far ahead: by a short measurement on the store itself, where it lies now.

A warm page cache wants one or two threads, a cold parallel filesystem wants many, and no file says which it is.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jeoparda.feed.reader import Reader

_THREADS = (1, 2, 4, 8, 16)
_SAMPLE = 32  # patches for each number of threads, read for the first time, as they may be cold
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
    sample = min(_SAMPLE, max(1, len(numbers) // len(_THREADS)))
    buffer = reader.buffer(sample)
    rates: dict[int, float] = {}
    waits: list[float] = []
    for i, threads in enumerate(_THREADS):
        some = numbers[i * sample : (i + 1) * sample]
        if not len(some):
            break
        with ThreadPoolExecutor(threads) as pool:
            pool.submit(len, ()).result()
            start = time.perf_counter()
            reader.read(some, buffer, pool, threads)
            waits.append(time.perf_counter() - start)
        rates[threads] = len(some) / waits[-1]
    best = max(rates.values())
    threads = next(t for t, rate in rates.items() if rate >= _ENOUGH * best)
    least, most = _AHEAD
    return Pace(threads, int(np.clip(1 + np.ceil(max(waits) * best / batch), least, most)), rates)
