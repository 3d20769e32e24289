"""Training on a GPU from the store, and from one batch that lies there already: what the feed costs a training."""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.turns import in_turn
from jeoparda import losses
from jeoparda.config import check
from jeoparda.feed import Batch, Feed, FeedRecipe, Plan
from jeoparda.models import ModelRecipe, build
from jeoparda.order import Order
from jeoparda.store import Layout, Store

UNTIMED = 10  # steps at the start of a turn, which use up what was read ahead while the other had its turn


def train(folder: Path, options: dict[str, Any], batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Both in turn, `steps` steps each, after a turn of each that does not count.

    value: the ratio of their rates, which is also the accelerator's utilisation as MLPerf Storage defines it: the time
    that the steps take with no wait for data over the time that they take.
    """
    device = torch.device("cuda")
    store = Store(folder)
    feed = _feed(store, options, batch, device)
    step = _step(store.info.layout, len(store.info.classes), device)
    stored = chain.from_iterable(repeat(feed))  # epoch after epoch
    first = next(stored)
    lying = repeat(
        {"image": first["image"].clone(memory_format=torch.channels_last), "labels": first["labels"].clone()}
    )
    sides = {"stored": lambda: _turn(stored, step, steps), "lying": lambda: _turn(lying, step, steps)}
    turns = in_turn(sides, rounds)
    ratios = [a / b for a, b in zip(turns["stored"], turns["lying"], strict=True)]
    images_per_s, resident = (statistics.median(turns[side]) for side in ("stored", "lying"))
    record = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in store.info.layout.fields().values())
    return {
        "value": statistics.median(ratios),
        "ratios": ratios,
        "images_per_s": images_per_s,
        "resident_images_per_s": resident,
        "gb_per_s": images_per_s * record / 1e9,
        "utilisation": statistics.median(ratios),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "feed": feed.kind,
        "batch": batch,
    }


def _feed(store: Store, options: dict[str, Any], batch: int, device: torch.device) -> Feed:
    numbers, r = store.split("all"), check(FeedRecipe, options)
    plan = Plan(Order(len(numbers), batch, 0, block=r.block, unit=2), numbers, 0, 1)
    return Feed(store, plan, r, True, store.labels, device=device)


def _step(layout: Layout, classes: int, device: torch.device) -> Callable[[Batch], None]:
    model = build(check(ModelRecipe, {"name": "resnet50"}), layout, classes)
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step(b: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(b["image"].to(memory_format=torch.channels_last))
        loss = losses.multilabel(logits.float(), b["labels"].to(device)) / len(logits)
        loss.backward()
        optimizer.step()

    return step


def _turn(batches: Iterator[Batch], step: Callable[[Batch], None], steps: int) -> float:
    """Images a second."""
    for _ in range(UNTIMED):
        step(next(batches))
    torch.cuda.synchronize()
    start, images = time.perf_counter(), 0
    for _ in range(steps):
        batch = next(batches)
        images += len(batch["image"])
        step(batch)
    torch.cuda.synchronize()
    return images / (time.perf_counter() - start)
