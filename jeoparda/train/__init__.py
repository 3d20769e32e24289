"""Training: one visible loop.

Every rank runs it alike. A step takes the rank's share of a global batch, and the loss is divided by the global
batch, so that any number of ranks takes the same step. Loop state is explicit and saved beside the weights; a run
that is started again in its folder goes on at the next sample.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from jeoparda import board, checkpoint, meter, metrics, optimizers, schedule, stall
from jeoparda.comm import Comm, same_everywhere
from jeoparda.config import dump
from jeoparda.errors import JeopardaError, Stopped, StoreError
from jeoparda.evaluate import infer
from jeoparda.feed import Batch
from jeoparda.feed.seen import SeenWriter, starts
from jeoparda.feed.stage import Stage
from jeoparda.files import whole
from jeoparda.journal import Journal, read
from jeoparda.order import key
from jeoparda.progress import track
from jeoparda.ranks import PARTS, RankEpoch
from jeoparda.signals import StopRequest
from jeoparda.store import Store
from jeoparda.train.figures import describe, epoch_line, spoken
from jeoparda.train.prepare import prepare
from jeoparda.train.recipe import CheckpointRecipe, OversampleRecipe, TrainRecipe
from jeoparda.train.state import Loop, Training, save

__all__ = ["CheckpointRecipe", "OversampleRecipe", "TrainRecipe", "run"]

STOP_CHECK_STEPS = 4  # how often ranks ask each other whether one was told to stop
_DROPOUT = 0xD50  # keeps this draw apart from the order's


def run(r: TrainRecipe, comm: Comm) -> Path:
    """Train, or go on training, and return the run folder.

    Raises Stopped after a signal, when the checkpoint is written; CheckpointError when the folder holds another run;
    StoreError when patches cannot be read any more, saying from where the run will go on; CommError when ranks have
    come to hold different weights.
    """
    stop = StopRequest()
    store = Store(r.store)
    both = np.concatenate([store.split(split) for split in ("train", "val")])
    with (
        stall.watch(r.stall_s, r.run, comm) as watch,
        Stage(store, r.feed.stage, r.feed.stage_folder, both, comm) as stage,
    ):
        t = prepare(r, comm, store, stage, stop)
        t.watch = watch
        return _train(t)


def progress(r: TrainRecipe) -> str:
    """Where the run goes on."""
    found = checkpoint.written(r.run)
    return f"step {int(found[-1].stem)}, its last checkpoint" if found else "its beginning"


def _train(t: Training) -> Path:
    r, comm = t.r, t.comm
    if t.finished:
        if comm.rank == 0:
            print(f"{r.run}: finished already, {t.finished}")
        return r.run
    journal = Journal(r.run / "journal.jsonl") if comm.rank == 0 else None
    if journal:
        with whole(r.run / "recipe.yaml") as draft:
            draft.write_text(dump(r))
        journal.append("resume" if t.loop != Loop() else "start", **describe(t))
        print(f"{r.run}: {r.model.name} on {comm.size} rank(s) ({comm.backend}), {t.feed.kind} feed, {t.device.type}")
    with _seen(t), _board(t), _how_to_go_on(r):
        while not t.finished:
            _round(t, journal)
    if journal:
        journal.append("stop", reason="finished", epoch=t.loop.epoch, after=t.finished)
        if t.loop.epoch < r.epochs:
            print(f"{r.run}: stopped after {t.finished}")
    return r.run


@contextmanager
def _seen(t: Training) -> Iterator[None]:
    """Has the journal of the patches seen open, where the recipe asks for one. After this start is in the run's own
    journal, which counts the starts."""
    if not t.r.feed.journal:
        yield
        return
    start = t.comm.broadcast(len(starts(t.r.run)) if t.comm.rank == 0 else None, "train.start")
    with closing(SeenWriter(t.r.run, start, t.comm.rank, t.comm.size)) as t.seen:
        yield


@contextmanager
def _board(t: Training) -> Iterator[None]:
    """Has TensorBoard's files open on rank 0, where the recipe asks for them or may have them."""
    if t.comm.rank != 0 or t.r.tensorboard == "never" or not board.available():
        yield
        return
    with closing(board.Board(t.r.run / board.FOLDER, t.done)) as t.board:
        yield


@contextmanager
def _how_to_go_on(r: TrainRecipe) -> Iterator[None]:
    """Adds to the error of a store that cannot be read what becomes of the run."""
    try:
        yield
    except StoreError as e:
        raise StoreError(f"{e}; then start the run again: it goes on from {progress(r)}") from e


def _round(t: Training, journal: Journal | None) -> None:
    """What is left of an epoch, then validation, a line in the journal, a checkpoint."""
    mine = _measured(t)
    with t.clock("checksum"):
        same_everywhere(t.comm, dict(t.model.named_parameters()), f"weights after epoch {t.loop.epoch + 1}")
    with t.clock("validation"):
        figures = _validate(t)
    line = epoch_line(t, mine, figures)
    if journal:  # before the checkpoint: a crash between the two leaves a line to find, not a line lost
        if not any(e["event"] == "epoch" and e["epoch"] == line["epoch"] for e in read(journal.path)):
            journal.append("epoch", **line)
        if t.board:
            t.board.write(line)
        print(spoken(t.r, line), flush=True)
    better = figures["micro_f1"] > t.loop.best_f1
    best = (figures["micro_f1"], line["step"]) if better else (t.loop.best_f1, t.loop.best_step)
    t.loop = Loop(t.loop.epoch + 1, best_f1=best[0], best_step=best[1])
    t.watch.beat("the checkpoint")
    started = time.perf_counter()
    save(t)
    t.comm.barrier()  # or the others would wait for rank 0 in the next epoch's time
    t.saved_s = time.perf_counter() - started


def _measured(t: Training) -> RankEpoch:
    """What is left of an epoch, and what it took this rank."""
    t.clock.restart()
    meter.restart_memory(t.device)
    t.energy.start()
    first_wait_s, images, seconds = epoch(t)
    joules = t.energy.joules()
    return RankEpoch(
        images,
        seconds,
        first_wait_s,
        {part: t.feed.waits.get(part, 0.0) + t.clock.spent_s.get(part, 0.0) for part in PARTS},
        meter.resident_bytes(),
        meter.device_bytes(t.device),
        joules["gpu"],
        joules["cpu"],
        meter.peak_flops(t.device, t.r.precision),
    )


def _validate(t: Training) -> dict[str, float]:
    """The figures of the validation split, after which classes have their thresholds."""
    model = t.average.module if t.average else t.model
    if t.r.norm == "local":  # whose running statistics differ: rank 0's are saved
        t.comm.same_weights(model)
    numbers, scores, loss = infer(
        model, t.val, t.device, t.comm, t.targets, lambda: t.watch.beat("validation"), t.precision.autocast()
    )
    labels = t.targets.of(t.store.labels[numbers])
    if t.r.thresholds == "per-class":
        t.thresholds = metrics.tuned(scores, labels, t.r.threshold).tolist()
    return {"loss": loss} | t.targets.score(scores, labels, t.r.threshold).summary()


def epoch(t: Training) -> tuple[float, int, float]:
    """The steps that are left of the epoch. Returns this rank's wait for the first batch in s, images, and seconds."""
    r, loop = t.r, t.loop
    t.feed.restore({"epoch": loop.epoch, "step": loop.step * r.accumulate})
    t.model.train()
    if r.norm == "frozen":
        for module in t.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    running = torch.zeros((), dtype=torch.float64, device=t.device)  # so that it does not matter how often it is read
    first, images, first_wait_s, started = loop.step * r.accumulate, 0, 0.0, time.perf_counter()
    batches: Iterable[Batch] = t.feed
    if t.comm.rank == 0:
        left = t.feed.plan.order.steps - first
        batches = track(t.feed, f"epoch {loop.epoch + 1}/{r.epochs}", "batches", left)
    for number, batch in enumerate(batches, start=first):
        if number == first:
            first_wait_s = t.feed.waited_s
        t.energy.keep_up()
        running += _backward(t, batch, number)
        images += len(batch["number"])
        if t.seen:
            t.seen.write(loop.epoch, number, batch["number"].tolist())
        if (number + 1) % r.accumulate:
            continue
        _update(t)
        loop.step += 1
        t.watch.beat(f"step {loop.step + 1} of epoch {loop.epoch + 1}")  # the first beat: torch.compile takes minutes
        saving = r.checkpoint.every_steps and loop.step % r.checkpoint.every_steps == 0 and loop.step < t.steps
        if loop.step % STOP_CHECK_STEPS == 0 or loop.step == t.steps or saving:
            with t.clock("compute"):  # with a GPU, until it has done what is queued
                loop.loss_sum += running.item()
            running.zero_()
            with t.clock("communication"):
                asked = _agree(t, loop.loss_sum)
            if saving or asked:
                with t.clock("checkpoint"):
                    save(t)
            if asked:
                t.comm.barrier()  # a launcher that sees another rank leave may end rank 0 while it writes
                raise Stopped(f"{r.run}: stopped by {asked} in epoch {loop.epoch + 1}, step {loop.step}; saved")
    return first_wait_s, images, time.perf_counter() - started


def _backward(t: Training, batch: Batch, number: int) -> torch.Tensor:
    """Adds to the gradients those of this rank's share of one part of a step; `number` counts the epoch's parts.
    Returns its share of the step's loss, on the device."""
    parts, order, dtype = t.r.accumulate, t.feed.plan.order, t.precision.weights
    part = number % parts
    torch.manual_seed(int(key(t.r.seed, _DROPOUT, t.done * parts + part, t.comm.rank) >> np.uint64(1)))
    with t.clock("compute"):
        image = batch["image"].to(t.device, dtype, memory_format=torch.channels_last, non_blocking=True)
        labels = batch["labels"].to(t.device, dtype, non_blocking=True)
        if part == 0:
            t.averaging.optimizer.zero_grad()
        first, last = order.bounds(number - part)[0], order.bounds(number - part + parts - 1)[1]
        with t.precision.autocast():
            logits = t.averaging.forward(image)
        loss = t.loss(logits.to(dtype), labels) / (last - first)
        # gradients are averaged over ranks: this makes it the batch's mean
        t.averaging.backward(t.precision.scaler.scale(loss * t.comm.size), part == parts - 1)
    return loss.detach()


def _update(t: Training) -> None:
    """The optimizer's step, when the gradients of all its parts are there."""
    r, optimizer, scaler = t.r, t.averaging.optimizer, t.precision.scaler
    # with other ranks: what the backward pass did not hide of the exchange, and waiting for the slowest
    with t.clock("communication" if t.comm.size > 1 else "compute"):
        t.averaging.finish()
    with t.clock("compute"):
        lr = optimizers.rate(r.optimizer, r.batch) * schedule.factor(r.schedule, t.done, r.epochs * t.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if r.optimizer.clip_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(t.model.parameters(), r.optimizer.clip_norm)
        with t.averaging.stepping():
            scaler.step(optimizer)
        scaler.update()
        if t.average:
            t.average.update_parameters(t.model)


def _agree(t: Training, loss_sum: float) -> str:
    """What some rank was told to stop by, "" for nothing. JeopardaError on all ranks when a loss is not finite."""
    flags = torch.tensor([float(bool(t.stop.asked)), float(not math.isfinite(loss_sum))])
    stop, broken = t.comm.sum(flags, "train.agree").tolist()
    if broken:
        raise JeopardaError(
            f"{t.r.run}: the loss is not finite in epoch {t.loop.epoch + 1} by step {t.loop.step}; "
            f"take a smaller optimizer.lr than {t.r.optimizer.lr}; checkpoints before this are kept"
        )
    return t.stop.asked or ("a signal on another rank" if stop else "")
