"""Training: one visible loop.

Every rank runs it alike. A step takes the rank's share of a global batch, and the loss is divided by the global
batch, so that any number of ranks takes the same step. Loop state is explicit and saved beside the weights; a run
that is started again in its folder goes on at the next sample.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jeoparda import __version__, checkpoint, losses, optimizers, schedule
from jeoparda.comm import Backend, Comm, cores_of, device_of, synchronise_norm
from jeoparda.config import REQUIRED, as_dict, dump, opt, recipe
from jeoparda.errors import CheckpointError, JeopardaError, RecipeError, Stopped, StoreError
from jeoparda.evaluate import infer
from jeoparda.feed import Batch, Feed, FeedRecipe, Plan, check_images
from jeoparda.feed.seen import SeenWriter, starts
from jeoparda.feed.stage import Stage
from jeoparda.files import whole
from jeoparda.journal import Journal, provenance, read
from jeoparda.losses import Loss, LossRecipe
from jeoparda.metrics import multilabel
from jeoparda.models import ModelRecipe, build
from jeoparda.optimizers import OptimizerRecipe
from jeoparda.order import Order, key, permute
from jeoparda.progress import track
from jeoparda.schedule import ScheduleRecipe
from jeoparda.signals import StopRequest
from jeoparda.store import Store

DTYPES = {"float32": torch.float32, "float64": torch.float64}
STOP_CHECK_STEPS = 4  # how often ranks ask each other whether one was told to stop
_DROPOUT, _SHUFFLE = 0xD50, 0x5F1E  # keep these draws apart from the order's


@recipe
class CheckpointRecipe:
    """What is kept, and how often."""

    every_steps: int = opt(0, "also within an epoch; 0: at each epoch's end only", "steps", ge=0)
    keep: int = opt(2, "newest checkpoints kept, beside the best", ge=1)


@recipe
class TrainRecipe:
    """jeoparda train: a multi-label classifier from a store, on one process or many ranks."""

    store: Path = opt(REQUIRED, "store made by `jeoparda ingest`")
    run: Path = opt(REQUIRED, "folder of this run; started again, it goes on where it stopped")
    model: ModelRecipe = opt(ModelRecipe, "network")
    epochs: int = opt(20, "passes over the training split", ge=1)
    batch: int = opt(64, "patches a step over all ranks; not multiplied by the number of ranks", "patches", ge=1)
    loss: LossRecipe = opt(LossRecipe, "loss")
    optimizer: OptimizerRecipe = opt(OptimizerRecipe, "optimizer")
    schedule: ScheduleRecipe = opt(ScheduleRecipe, "learning rate over the run")
    ema: float = opt(
        0.0,
        "what is validated and used are weights averaged over the steps, each time this share of the average and the "
        "rest of the new; 0: the newest weights",
        ge=0,
        lt=1,
    )
    patience: int = opt(
        0, "stop for good after so many epochs without a better validation micro F1; 0: never", "epochs", ge=0
    )
    norm: Literal["synchronised", "local", "frozen"] = opt(
        "synchronised", "BatchNorm over the global batch, over each rank's share, or with fixed statistics"
    )
    precision: Literal["float32", "float64"] = opt(
        "float32", "of weights and arithmetic; float64 shows that two set-ups take the same steps, slowly"
    )
    feed: FeedRecipe = opt(FeedRecipe, "how batches are made")
    comm: Backend = opt("auto", "auto: Horovod when a launcher started more than one rank")
    threshold: float = opt(0.5, "a class is predicted from this probability on", gt=0, lt=1)
    seed: int = opt(0, "of weights, order, augmentation and dropout")
    checkpoint: CheckpointRecipe = opt(CheckpointRecipe, "checkpoints")
    control: Literal["none", "shuffled-labels"] = opt(
        "none", "shuffled-labels: training labels dealt out to other patches, which must not be learnable"
    )


@dataclass
class Loop:
    """Where the loop stands: `step` steps of `epoch` are done, and `loss_sum` is the sum of their losses.

    best_f1, best_step: of the checkpoint with the highest validation micro F1, -1 and 0 before there is one.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_f1: float = -1.0
    best_step: int = 0


@dataclass
class Training:
    """All that one rank holds while it trains."""

    r: TrainRecipe
    comm: Comm
    store: Store
    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    feed: Feed
    val: Feed
    device: torch.device
    loop: Loop
    stop: StopRequest
    average: AveragedModel | None  # this and the next where the recipe asks for them
    seen: SeenWriter | None = None

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return self.feed.plan.order.steps

    @property
    def finished(self) -> str:
        """Why there is nothing left to do, or ""."""
        best_epoch = self.loop.best_step // self.steps
        if self.loop.epoch >= self.r.epochs:
            return f"{self.r.epochs} epochs"
        if self.r.patience and self.loop.best_step and self.loop.epoch - best_epoch >= self.r.patience:
            return f"{self.r.patience} epochs without a better micro F1 than that of epoch {best_epoch}"
        return ""


def run(r: TrainRecipe, comm: Comm) -> Path:
    """Train, or go on training, and return the run folder.

    Raises Stopped after a signal, when the checkpoint is written; CheckpointError when the folder holds another run;
    StoreError when patches cannot be read any more, saying from where the run will go on.
    """
    stop = StopRequest()
    store = Store(r.store)
    read = np.concatenate([store.split(split) for split in ("train", "val")])
    with Stage(store, r.feed.stage, r.feed.stage_folder, read, comm) as stage:
        return _train(_prepare(r, comm, store, stage, stop))


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
        journal.append("resume" if t.loop != Loop() else "start", **_describe(t))
        print(f"{r.run}: {r.model.name} on {comm.size} rank(s) ({comm.backend}), {t.feed.kind} feed, {t.device.type}")
    with _seen(t), _how_to_go_on(r.run):
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
def _how_to_go_on(run: Path) -> Iterator[None]:
    """Adds to the error of a store that cannot be read what becomes of the run."""
    try:
        yield
    except StoreError as e:
        last = max((int(path.stem) for path in (run / "checkpoints").glob("[0-9]*.pt")), default=None)
        after = "begins anew" if last is None else f"goes on after step {last}, its last checkpoint"
        raise StoreError(f"{e}; then start the run again: it {after}") from e


def _round(t: Training, journal: Journal | None) -> None:
    """What is left of an epoch, then validation, a line in the journal, a checkpoint."""
    r, spent = t.r, defaultdict[str, float](float)
    images, seconds = _epoch(t, spent)
    with _clock(spent, "validation"):
        model = t.average.module if t.average else t.model
        numbers, scores, loss = infer(model, t.val, t.device, t.comm)
        figures = {"loss": loss} | multilabel(scores, t.store.labels[numbers], r.threshold).summary()
    line = _line(t, spent, images, seconds, figures)
    if journal:  # before the checkpoint: a crash between the two leaves a line to find, not a line lost
        if not any(e["event"] == "epoch" and e["epoch"] == line["epoch"] for e in read(journal.path)):
            journal.append("epoch", **line)
        print(_spoken(r, line), flush=True)
    better = figures["micro_f1"] > t.loop.best_f1
    best = (figures["micro_f1"], line["step"]) if better else (t.loop.best_f1, t.loop.best_step)
    t.loop = Loop(t.loop.epoch + 1, best_f1=best[0], best_step=best[1])
    _save(t)


def _epoch(t: Training, spent: dict[str, float]) -> tuple[int, float]:
    """The steps that are left of the epoch. Returns this rank's images and seconds."""
    r, loop = t.r, t.loop
    t.feed.restore({"epoch": loop.epoch, "step": loop.step})
    t.feed.waited_s = 0.0
    t.model.train()
    if r.norm == "frozen":
        for module in t.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    running = torch.zeros((), dtype=torch.float64, device=t.device)  # so that it does not matter how often it is read
    images, started = 0, time.perf_counter()
    batches: Iterable[Batch] = t.feed
    if t.comm.rank == 0:
        batches = track(t.feed, f"epoch {loop.epoch + 1}/{r.epochs}", "steps", t.steps - loop.step)
    for batch in batches:
        spent.setdefault("first_wait", t.feed.waited_s)
        running += _step(t, batch, spent)
        images += len(batch["number"])
        if t.seen:
            t.seen.write(loop.epoch, loop.step, batch["number"].tolist())
        loop.step += 1
        save = r.checkpoint.every_steps and loop.step % r.checkpoint.every_steps == 0 and loop.step < t.steps
        if loop.step % STOP_CHECK_STEPS == 0 or loop.step == t.steps or save:
            loop.loss_sum += running.item()
            running.zero_()
            asked = _agree(t, loop.loss_sum)
            if save or asked:
                with _clock(spent, "checkpoint"):
                    _save(t)
            if asked:
                t.comm.barrier()  # a launcher that sees another rank leave may end rank 0 while it writes
                raise Stopped(f"{r.run}: stopped by {asked} in epoch {loop.epoch + 1}, step {loop.step}; saved")
    return images, time.perf_counter() - started


def _step(t: Training, batch: Batch, spent: dict[str, float]) -> torch.Tensor:
    """One step of the optimizer on this rank's share of a batch. Returns its share of the loss, on the device."""
    r, dtype = t.r, DTYPES[t.r.precision]
    done = t.loop.epoch * t.steps + t.loop.step
    for group in t.optimizer.param_groups:
        group["lr"] = r.optimizer.lr * schedule.factor(r.schedule, done, r.epochs * t.steps)
    torch.manual_seed(int(key(r.seed, _DROPOUT, done, t.comm.rank) >> np.uint64(1)))
    with _clock(spent, "compute"):
        image = batch["image"].to(t.device, dtype, memory_format=torch.channels_last, non_blocking=True)
        labels = batch["labels"].to(t.device, dtype, non_blocking=True)
        t.optimizer.zero_grad()
        first, last = t.feed.plan.order.bounds(t.loop.step)
        loss = t.loss(t.model(image), labels) / (last - first)
        (loss * t.comm.size).backward()  # gradients are averaged over ranks: this makes it the batch's mean
    # with other ranks: what the backward pass did not hide of the exchange, and waiting for the slowest
    with _clock(spent, "communication" if t.comm.size > 1 else "compute"):
        t.comm.finish_averages(t.optimizer)
    with _clock(spent, "compute"):
        if r.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(t.model.parameters(), r.optimizer.clip_norm)
        t.comm.step(t.optimizer)
        if t.average:
            t.average.update_parameters(t.model)
    return loss.detach()


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


def _prepare(r: TrainRecipe, comm: Comm, store: Store, stage: Stage, stop: StopRequest) -> Training:
    check_images(r.feed)
    schedule.check_shares(r.schedule)
    device, cores = device_of(comm), cores_of(comm)
    feeds = {}
    for split in ("train", "val"):
        numbers, train = store.split(split), split == "train"
        unit = 2 if train and r.feed.augment.mixup else 1
        order = Order(len(numbers), r.batch, r.seed, shuffle=train, block=r.feed.block, unit=unit)
        labels = _shuffled(store, numbers, r.seed) if r.control != "none" and train else store.labels
        plan = Plan(order, numbers, comm.rank, comm.size)
        feeds[split] = Feed(store, plan, r.feed, train, labels, device=device, cores=cores, path_of=stage.path_of)
    order = feeds["train"].plan.order
    if order.count // order.steps <= (comm.size - 1) * order.unit:  # the smallest step
        raise RecipeError(
            f"batch = {r.batch} over {comm.size} ranks leaves some without a patch; take more, or fewer ranks"
        )
    torch.manual_seed(r.seed)
    model = build(r.model, len(feeds["train"].layout.bands), len(store.info.classes))
    # weights stay row-major: Horovod reduces nothing else; images come channels-last
    model.to(device, DTYPES[r.precision])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(r.ema), use_buffers=True) if r.ema else None
    if r.norm == "synchronised":
        synchronise_norm(model, comm)
    optimizer = comm.average_gradients(optimizers.build(r.optimizer, model), model)
    weight = losses.balance(r.loss, store.labels[store.split("train")])
    loss = losses.build(r.loss, None if weight is None else weight.to(device, DTYPES[r.precision]))
    t = Training(r, comm, store, model, loss, optimizer, feeds["train"], feeds["val"], device, Loop(), stop, average)
    _resume(t)
    comm.same_weights(model)
    return t


def _shuffled(store: Store, numbers: np.ndarray, seed: int) -> np.ndarray:
    """(patch, class): the labels with those of the patches `numbers` dealt out among them anew."""
    labels = store.labels.copy()
    dealt = permute(np.arange(len(numbers)), len(numbers), key(seed, _SHUFFLE))
    labels[numbers] = store.labels[numbers[dealt]]
    return labels


# ---- state


def _identity(r: TrainRecipe) -> dict[str, Any]:
    """What must not change when a run goes on: all but where, on what and how fast."""
    d = as_dict(r)
    for name in ("run", "store", "comm", "checkpoint"):
        del d[name]
    d["feed"] = {name: d["feed"][name] for name in ("augment", "bands", "block")}
    d["feed"]["synthetic"] = r.feed.kind == "synthetic"  # the other kinds give the same
    return d


def _save(t: Training) -> None:
    """Rank 0 writes; all take part, because the loss so far is spread over them."""
    if t.seen:
        t.seen.sync()  # before the sum, so before the checkpoint is there
    loss_sum = t.comm.sum(torch.tensor(t.loop.loss_sum, dtype=torch.float64), "train.loss_so_far").item()
    if t.comm.rank != 0:
        return
    info = t.store.info
    state = {
        "model": t.model.state_dict(),
        "optimizer": t.optimizer.state_dict(),
        "average": t.average.module.state_dict() if t.average else None,
        "loop": asdict(t.loop) | {"loss_sum": loss_sum},
        "recipe": _identity(t.r),
        "about": {
            "jeoparda": __version__,
            "store": t.store.digest,
            "sensor": info.sensor,
            "groups": [asdict(g) | {"bands": list(g.bands)} for g in t.feed.layout.groups],
            "mean": t.feed.mean.tolist(),
            "std": t.feed.std.tolist(),
            "unit": info.unit,
            "rgb": list(info.rgb) if {*info.rgb} <= {*t.feed.layout.bands} else [],
            "nomenclature": info.nomenclature,
            "classes": list(info.classes),
            "colors": [list(c) for c in info.colors],
            "model": as_dict(t.r.model),
            "threshold": t.r.threshold,
        },
    }
    path = checkpoint.path_of(t.r.run, t.loop.epoch * t.steps + t.loop.step)
    checkpoint.save(path, state)
    _mark_best(t)
    checkpoint.prune(t.r.run, t.r.checkpoint.keep)


def _mark_best(t: Training) -> None:
    """Also when a run goes on: it may have died between a checkpoint and its mark."""
    if t.loop.best_step:
        checkpoint.mark_best(checkpoint.path_of(t.r.run, t.loop.best_step))


def _resume(t: Training) -> None:
    """Take up the newest whole checkpoint of the run folder. Rank 0 chooses and reads; the rest are told."""
    found = checkpoint.newest(t.r.run) if t.comm.rank == 0 else None
    state = t.comm.broadcast(found[1] if found else None, "train.resume")
    if state is None:
        return
    was, now = _flat(state["recipe"]), _flat(_identity(t.r))
    changed = [f"{k}: was {was.get(k)}, now {now.get(k)}" for k in sorted(was | now) if was.get(k) != now.get(k)]
    if state["about"]["store"] != t.store.digest:
        changed.append("the store's content")
    if changed:
        raise CheckpointError(f"{t.r.run}: holds another run; give another `run` folder. Changed: {'; '.join(changed)}")
    t.model.load_state_dict(state["model"])
    t.optimizer.load_state_dict(state["optimizer"])
    if t.average:
        t.average.module.load_state_dict(state["average"])
        t.average.n_averaged += 1  # it has begun
    t.loop = Loop(**state["loop"])
    if t.comm.rank != 0:
        t.loop.loss_sum = 0.0  # rank 0 carries the sum over all
    if t.comm.rank == 0:
        _mark_best(t)
        print(f"{t.r.run}: going on from epoch {t.loop.epoch + 1}, step {t.loop.step}", flush=True)


def _flat(d: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    out: dict[str, Any] = {}
    for k, v in d.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v}
    return out


# ---- figures


@contextmanager
def _clock(spent: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    spent[what] += time.perf_counter() - start


def _describe(t: Training) -> dict[str, Any]:
    return provenance() | {
        "ranks": t.comm.size,
        "backend": t.comm.backend,
        "feed": t.feed.kind,
        "device": t.device.type,
        "store": str(t.r.store),
        "store_digest": t.store.digest,
        "classes": list(t.store.info.classes),
        "bands": list(t.feed.layout.bands),
        "train_patches": t.feed.plan.order.count,
        "val_patches": t.val.plan.order.count,
        "model": t.r.model.name,
        "parameters": sum(p.numel() for p in t.model.parameters()),
        "epoch": t.loop.epoch,
        "step": t.loop.step,
        "recipe": as_dict(t.r),
    }


def _line(
    t: Training, spent: dict[str, float], images: int, seconds: float, figures: dict[str, float]
) -> dict[str, Any]:
    """The epoch's journal line; on every rank, for it gathers from all."""
    mine = {
        "rate": images / seconds if seconds else 0.0,
        "wait_s": t.feed.waited_s,
        "utilisation": utilisation(seconds - spent["checkpoint"], t.feed.waited_s, spent.get("first_wait", seconds)),
        "loss": t.loop.loss_sum,
    }
    ranks = t.comm.gather(mine, "train.line")
    parts = ("compute", "communication", "checkpoint")
    return {
        "epoch": t.loop.epoch + 1,
        "step": (t.loop.epoch + 1) * t.steps,
        "loss": sum(m["loss"] for m in ranks) / t.steps,
        "lr": t.optimizer.param_groups[0]["lr"],
        "val": figures,
        "images_per_s": sum(m["rate"] for m in ranks),
        "images_per_s_per_rank": [m["rate"] for m in ranks],
        "seconds": seconds,
        "val_seconds": spent["validation"],
        "wait_s": [m["wait_s"] for m in ranks],
        "utilisation": sum(m["utilisation"] for m in ranks) / len(ranks),
        "utilisation_per_rank": [m["utilisation"] for m in ranks],
        "split_s": {"feed": t.feed.waited_s} | {p: spent.get(p, 0.0) for p in parts},
    }


def utilisation(running_s: float, waited_s: float, first_wait_s: float) -> float:
    """Accelerator utilisation as MLPerf Storage defines it: computing time / running time, the wait for the first batch
    left out of both (MLCommons, MLPerf Storage rules, section Performance Metrics, https://github.com/mlcommons/storage).
    running_s: without checkpoints, which are no part of it in DLIO, MLPerf Storage's own program, either.

    Computing is all that is not waiting for the feed. So of several ranks the lowest tells most: while its feed is
    late, all others wait for it in an exchange. The clock is that of the loop, which with a GPU is ahead of the device:
    while the loop waits, the device may still work on steps in its queue. So there the figure is a lower bound: for
    want of a batch the device was idle as long as the loop waited, at most. nan where no time is left.
    """
    running_s, waited_s = running_s - first_wait_s, waited_s - first_wait_s
    return 1 - waited_s / running_s if running_s > 0 else math.nan


def _spoken(r: TrainRecipe, line: dict[str, Any]) -> str:
    val = line["val"]
    return (
        f"epoch {line['epoch']}/{r.epochs}  loss {line['loss']:.4f}  val loss {val['loss']:.4f}  "
        f"micro F1 {val['micro_f1']:.3f}  macro F1 {val['macro_f1']:.3f}  mAP {val['map']:.3f}  "
        f"{line['images_per_s']:.1f} images/s  {line['seconds']:.0f} s  utilisation {line['utilisation']:.0%}"
    )
