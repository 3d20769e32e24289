"""Training on a GPU: what the network allows, what the loop makes of it, and what comes of a staged store."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.train.loop import epoch, training
from benchmarks.turns import in_turn
from jeoparda import meter
from jeoparda.comm import Single, cores_of
from jeoparda.feed import Feed, Plan
from jeoparda.feed.stage import Stage
from jeoparda.order import Order
from jeoparda.train.state import Loop, Training

SEED_IMAGES_PER_S = 590_326 / 60  # BigEarthNet in a minute, JEOPARDA's ResNet-50 on eight V100
NEAR = 0.95  # of a rate: as good as that


def measure(store: Path, steps: int, rounds: int, **keys: Any) -> dict[str, Any]:
    """Images a second of each of `sides`: medians over turns of `steps` steps, after one of each that does not count,
    in which torch compiles. keys: of the recipe."""
    with training(Single(), store=str(store), epochs=1_000_000, **keys) as (t, stage):
        meter.restart_memory(t.device)
        rates = in_turn(sides(t, stage, steps), rounds)
        found = {name: statistics.median(turns) for name, turns in rates.items()}
        peak = meter.peak_flops(t.device, t.r.precision)
        return {
            "images_per_s": found,
            "limit": limit(found),
            "mfu": {name: found[name] * t.flops / peak for name in ("ceiling", "stored")} if peak else None,
            "over_seed": found["stored"] / SEED_IMAGES_PER_S,
            "peak_gb": (meter.device_bytes(t.device) or 0) / 1e9,
            "feed": t.feed.kind,
            "batch": t.r.batch,
            "precision": t.r.precision,
            "compile": t.r.compile,
        }


def sides(t: Training, stage: Stage, steps: int) -> dict[str, Callable[[], float]]:
    """By name, what gives the images a second of a turn. ceiling: steps on one batch that lies on the device, and
    nothing around them. loop: the loop, on batches that cost nothing. stored: the loop, on the store's. feed: the
    store's batches, which nobody uses. The wait for an epoch's first batch does not count."""
    stored, made = (replace(t, feed=_feed(t, stage, kind, steps), loop=Loop()) for kind in (t.feed.kind, "synthetic"))
    return {
        "ceiling": lambda: _ceiling(made, steps),
        "loop": lambda: _loop(made),
        "stored": lambda: _loop(stored),
        "feed": lambda: _drained(stored),
    }


def limit(rates: dict[str, float]) -> str:
    """What an end-to-end training is limited by."""
    if rates["stored"] < NEAR * rates["loop"]:
        return "feed" if rates["feed"] < rates["loop"] else "feed and network share the device"
    return "loop" if rates["loop"] < NEAR * rates["ceiling"] else "network"


def _feed(t: Training, stage: Stage, kind: str, steps: int) -> Feed:
    """Of an epoch of so many steps, in which a patch comes more than once where the store has too few."""
    order = Order(steps * t.r.batch, t.r.batch, 0)
    plan = Plan(order, np.resize(t.feed.plan.numbers, order.count), 0, 1)
    r = replace(t.r.feed, kind=kind)  # type: ignore[type-var]  # mypy does not see through `recipe`
    cores = cores_of(t.comm)
    return Feed(t.store, plan, r, True, t.store.labels, device=t.device, cores=cores, path_of=stage.path_of)


def _loop(t: Training) -> float:
    images, seconds = epoch(t)
    return images / seconds


def _ceiling(t: Training, steps: int) -> float:
    """The loop's arithmetic, by hand."""
    batch = next(iter(t.feed))
    image = batch["image"].to(t.device, t.precision.weights, memory_format=torch.channels_last, copy=True)
    labels = batch["labels"].to(t.device, t.precision.weights)
    optimizer, scaler = t.averaging.optimizer, t.precision.scaler
    t.model.train()
    _finish(t)
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        with t.precision.autocast():
            logits = t.model(image)
        loss = t.loss(logits.to(labels.dtype), labels) / len(labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    _finish(t)
    return steps * len(labels) / (time.perf_counter() - start)


def _drained(t: Training) -> float:
    t.feed.restore({"epoch": 0, "step": 0})
    images, start = 0, 0.0
    for batch in t.feed:
        if not start:  # the first batch has come
            start = time.perf_counter()
        else:
            images += len(batch["number"])
    _finish(t)
    return images / (time.perf_counter() - start)


def _finish(t: Training) -> None:
    if t.device.type == "cuda":
        torch.cuda.synchronize()
