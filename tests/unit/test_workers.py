"""Workers: every task once, whoever does it; tasks drawn as needed; errors and dead processes told."""

import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from jeoparda.errors import CommError, JeopardaError
from jeoparda.launchers import LAUNCHERS
from jeoparda.workers import AHEAD, Workers, workers


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name, _ in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def square(x: int) -> tuple[int, int]:
    return x * x, os.getpid()


def fail(x: int) -> int:
    if x == 3:
        raise ValueError("task 3")
    return x


def die(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_task_is_done_once(count):
    with workers(count) as w:
        assert w is not None and w.count == count
        done = list(w.map(square, ((i,) for i in range(20))))
    assert sorted(x for x, _ in done) == [i * i for i in range(20)]
    assert {pid for _, pid in done} == {os.getpid()} if count == 1 else os.getpid() not in {p for _, p in done}


def test_tasks_are_drawn_as_they_are_needed():
    """A task may carry the members of a tar: they must not pile up."""
    drawn = 0

    def tasks():
        nonlocal drawn
        for i in range(50):
            drawn += 1
            yield (i,)

    with workers(2) as w:
        assert w is not None
        for done, _ in enumerate(w.map(square, tasks()), start=1):
            assert drawn - done <= 2 * AHEAD + 1


def run(function, count: int) -> list[int]:
    with workers(count) as w:
        assert w is not None
        return list(w.map(function, ((i,) for i in range(20))))


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_error_of_a_task_is_raised(count):
    with pytest.raises(ValueError, match="task 3"):
        run(fail, count)


def test_a_killed_worker_is_told():
    with pytest.raises(JeopardaError, match=r"a worker process died.*it goes on where it stopped"):
        run(die, 2)


def parent(told) -> None:
    with workers(2) as w:
        assert w is not None
        for _, pid in w.map(square, ((i,) for i in range(4))):
            told.send(pid)
        told.send(0)
        time.sleep(60)


def test_workers_end_with_a_parent_that_is_killed():
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=parent, args=(there,))
    process.start()
    pids = set(iter(here.recv, 0))
    process.kill()
    process.join()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)


class Slow:
    """An executor of one worker that is never done before it is asked."""

    def submit(self, function, *args):
        from concurrent.futures import Future

        future: Future = Future()
        self.left = [*getattr(self, "left", []), (future, function, args)]
        if len(self.left) > AHEAD:
            raise AssertionError("more was handed out than there was room for")
        return future

    def work(self):
        future, function, args = self.left.pop(0)
        future.set_result((*function(*args), "there"))


def test_rank_0_works_while_the_others_are_busy():
    executor = Slow()
    results = Workers(executor, 2, here=True).map(square, ((i,) for i in range(6)))  # type: ignore[arg-type]
    assert [next(results)[0] for _ in range(2)] == [4, 9]  # tasks 0 and 1 wait with the other rank
    executor.work()
    assert next(results) == (0, os.getpid(), "there")  # which makes room for task 4
    assert next(results)[0] == 25
    executor.work()
    executor.work()
    assert sorted(x[0] for x in results) == [1, 16]


def test_ranks_that_do_not_find_each_other_are_told(monkeypatch):
    pytest.importorskip("mpi4py")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "5")
    with pytest.raises(CommError, match="srun launched 5 ranks, but MPI sees 1"), workers():
        pass


def test_every_error_comes_back_from_another_process():
    from jeoparda import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.JeopardaError)]
    for kind in kinds:
        made = kind("f", "torn", "a whole one") if kind is errors.PatchError else kind("torn")
        back = pickle.loads(pickle.dumps(made))
        assert type(back) is kind and str(back) == str(made) and vars(back) == vars(made)
