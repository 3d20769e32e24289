"""Who works: this process, local processes, or the ranks that a launcher started. One interface for ingest and
inference, which need no collectives: a function, many tasks, results in whatever order they come.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from jeoparda.errors import CommError, JeopardaError
from jeoparda.launchers import launched

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
AHEAD = 2  # tasks with each worker: one in hand, one waiting


class Workers:
    """`count` workers. `executor`: has `submit`, as those of concurrent.futures; without one this process does all;
    with `here` it takes its share."""

    def __init__(self, executor: Any = None, count: int = 1, here: bool = True) -> None:
        self._executor, self.count, self._here = executor, count, here

    def map(self, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]], ahead: int = AHEAD) -> Iterator[T]:
        """function(*task) of every task, in the order in which they end. Tasks are drawn as they are needed, `ahead` of
        them for each worker, so that what they carry does not pile up. An error of a task is raised here, after those
        in hand have ended."""
        if self._executor is None:
            yield from (function(*task) for task in tasks)
            return
        waiting: set[Future[T]] = set()
        room = ahead * (self.count - self._here)
        for task in tasks:
            busy = len(waiting) >= room
            if busy and self._here:
                yield function(*task)
            else:
                if busy:
                    wait(waiting, return_when=FIRST_COMPLETED)
                waiting.add(self._executor.submit(function, *task))
            done = {f for f in waiting if f.done()}
            waiting -= done
            yield from (f.result() for f in done)
        yield from (f.result() for f in as_completed(waiting))


@contextmanager
def workers(count: int = 0) -> Iterator[Workers | None]:
    """The workers there are: the ranks of mpirun or srun where there are more than one, else `count` local processes
    (0: one a core of this process).

    Of several ranks only rank 0 gets Workers; the others work inside of the `with` and then get None.
    """
    size, who = launched()
    if size > 1:
        with _ranks(size, who) as found:
            yield found
        return
    count = count or len(os.sched_getaffinity(0))
    if count == 1:
        yield Workers()
        return
    # spawn: a fork would copy locks that GDAL's or MPI's threads hold
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, spawn, initializer=_end_with, initargs=(os.getpid(),))
    try:
        yield Workers(pool, count, here=False)
    except BrokenProcessPool as e:
        raise JeopardaError(
            f"a worker process died (killed, perhaps for memory, or crashed): {e}; run the same command again, perhaps "
            "with fewer `workers`: it goes on where it stopped"
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """A worker of a parent that was killed would wait for tasks for ever: let it be killed too (Linux's prctl)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


@contextmanager
def _ranks(size: int, who: str) -> Iterator[Workers | None]:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except ImportError as e:
        raise CommError(
            f"{who} launched {size} ranks, which find each other by mpi4py, and it is not installed ({e}); "
            "pip install 'jeoparda[mpi]', or start one process"
        ) from e
    if MPI.COMM_WORLD.size != size:
        raise CommError(
            f"{who} launched {size} ranks, but MPI sees {MPI.COMM_WORLD.size}: its MPI is not the launcher's; "
            "under srun try --mpi=pmix, or use mpirun"
        )
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield None if executor is None else Workers(executor, size, here=True)
