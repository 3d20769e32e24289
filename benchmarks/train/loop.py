"""The training loop by itself: an epoch at a time, without validation and checkpoints."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jeoparda import train
from jeoparda.comm import Comm
from jeoparda.config import check
from jeoparda.feed.stage import Stage
from jeoparda.signals import StopRequest
from jeoparda.store import Store
from jeoparda.train import TrainRecipe
from jeoparda.train.prepare import prepare
from jeoparda.train.state import Loop, Training


@contextmanager
def training(comm: Comm, /, **keys: Any) -> Iterator[tuple[Training, Stage]]:
    """Of a recipe's keys, in a run folder that nothing is written to. Staging has ended."""
    with tempfile.TemporaryDirectory() as run:
        r = check(TrainRecipe, {"run": run, **keys})
        store = Store(r.store)
        with Stage(store, r.feed.stage, r.feed.stage_folder, store.split("all"), comm) as stage:
            stage.wait()
            yield prepare(r, comm, store, stage, StopRequest()), stage


def share(steps: int, batch: int, patches: int) -> float:
    """A recipe's `subset` for epochs of so many steps, of a store of so many training patches."""
    return steps * batch / patches


def epoch(t: Training) -> tuple[int, float]:
    """This rank's images of an epoch, and its seconds after the first batch has come."""
    first_wait_s, images, seconds = train.epoch(t)
    t.loop = Loop(t.loop.epoch + 1)
    return images, seconds - first_wait_s
