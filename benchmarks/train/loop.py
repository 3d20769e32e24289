"""The training loop by itself: an epoch at a time, without validation and checkpoints."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.feed import stores
from jeoparda import train
from jeoparda.comm import Comm
from jeoparda.config import check
from jeoparda.feed.stage import Stage
from jeoparda.signals import StopRequest
from jeoparda.store import Store
from jeoparda.train import TrainRecipe
from jeoparda.train.prepare import prepare
from jeoparda.train.state import Loop, Training

PATCHES, VAL = 512, 16  # of the store, or more where an epoch has more


@contextmanager
def training(comm: Comm, /, **keys: Any) -> Iterator[tuple[Training, Stage]]:
    """Of a recipe's keys, in a run folder that nothing is written to. Staging has ended."""
    with tempfile.TemporaryDirectory() as run:
        r = check(TrainRecipe, {"run": run, **keys})
        store = Store(r.store)
        with Stage(store, r.feed.stage, r.feed.stage_folder, store.split("all"), comm) as stage:
            stage.wait()
            yield prepare(r, comm, store, stage, StopRequest()), stage


def store_of(steps: int, batch: int) -> dict[str, Any]:
    """The keys of a recipe whose epochs have so many steps: a store with as many patches to train on, or a part of
    one."""
    patches = max(PATCHES, steps * batch)
    return {"store": str(stores.native(patches + VAL, VAL)), "subset": steps * batch / patches}


def epoch(t: Training) -> tuple[int, float]:
    """This rank's images of an epoch, and its seconds after the first batch has come."""
    first_wait_s, images, seconds = train.epoch(t)
    t.loop = Loop(t.loop.epoch + 1)
    return images, seconds - first_wait_s
