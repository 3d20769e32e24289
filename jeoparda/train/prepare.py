"""From a recipe to a training that can begin, or go on."""

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jeoparda import board, losses, meter, optimizers, schedule, targets
from jeoparda.comm import Comm, cores_of, device_of, synchronise_norm
from jeoparda.energy import Energy
from jeoparda.errors import RecipeError, StoreError
from jeoparda.feed import Feed, Plan, check_images
from jeoparda.feed.stage import Stage
from jeoparda.meter import Stopwatch
from jeoparda.models import build, check_side
from jeoparda.models.weights import load_weights
from jeoparda.order import Order, drawn_count, key, permute, repeats, subset
from jeoparda.signals import StopRequest
from jeoparda.store import Layout, Store
from jeoparda.targets import Targets
from jeoparda.train import precision
from jeoparda.train.precision import Precision
from jeoparda.train.recipe import TrainRecipe
from jeoparda.train.state import Loop, Training, resume

_SHUFFLE = 0x5F1E  # keeps this draw apart from the order's


def prepare(r: TrainRecipe, comm: Comm, store: Store, stage: Stage, stop: StopRequest) -> Training:
    """All that a rank holds, as the run's newest checkpoint has it. RecipeError for what cannot work; CheckpointError
    when the folder holds another run."""
    learnt = targets.build(store.info, r.labels, r.task)
    _check(r, learnt)
    device = device_of(comm)
    arithmetic = precision.of(r.precision, device)
    labels = learnt.of(store.labels)
    feeds, left_out = _feeds(r, comm, store, stage, learnt, labels, device)
    layout, clock = feeds["train"].layout, Stopwatch()
    model, average, flops = _network(r, comm, layout, len(learnt.classes), arithmetic, clock)
    weight = losses.balance(r.loss, labels[feeds["train"].plan.numbers], learnt.task)
    t = Training(
        r=r,
        comm=comm,
        store=store,
        targets=learnt,
        model=model,
        loss=losses.build(r.loss, None if weight is None else weight.to(device, arithmetic.weights), learnt.task),
        averaging=comm.average(model, optimizers.build(r.optimizer, model), r.accumulate),
        precision=arithmetic,
        feed=feeds["train"],
        val=feeds["val"],
        device=device,
        loop=Loop(),
        stop=stop,
        average=average,
        left_out=left_out,
        flops=flops,
        clock=clock,
        energy=Energy(device, comm.local_rank),
    )
    if not resume(t) and r.model.weights:
        t.fresh = load_weights(model, r.model, layout.bands, learnt.classes)
    comm.same_weights(model)
    return t


def _check(r: TrainRecipe, learnt: Targets) -> None:
    """RecipeError for keys that do not go together."""
    check_images(r.feed)
    schedule.check_shares(r.schedule)
    if r.tensorboard == "always" and not board.available():
        raise RecipeError("tensorboard = always: the package is not installed; pip install tensorboard, or take auto")
    if learnt.single and r.thresholds == "per-class":
        raise RecipeError("thresholds = per-class: patches of one class each need none; take fixed")
    if r.model.weights_bands and not r.model.weights:
        raise RecipeError(
            "model.weights_bands: are those of model.weights, which is null; name the file, or leave them out"
        )
    if r.compile in ("reduce-overhead", "max-autotune") and r.accumulate > 1:
        raise RecipeError(
            f"compile = {r.compile}: its CUDA graphs do not go with accumulate = {r.accumulate}; take default"
        )
    if r.compile != "none" and r.model.recompute:
        raise RecipeError(
            f"compile = {r.compile}: does not go with model.recompute; take compile = none, or false there"
        )


def _network(
    r: TrainRecipe, comm: Comm, layout: Layout, classes: int, arithmetic: Precision, clock: Stopwatch
) -> tuple[nn.Module, AveragedModel | None, int]:
    """The network with random weights on its device, the average of its weights where the recipe asks for one, and the
    FLOPs of a training step for an image. clock: gets the time in which norms exchange their moments."""
    side_px = r.feed.augment.crop_px or layout.size_px
    check_side(r.model, side_px)
    torch.manual_seed(r.seed)
    model = build(r.model, layout, classes)
    # weights stay row-major: Horovod reduces nothing else; images come channels-last
    model.to(arithmetic.device, arithmetic.weights)
    flops = meter.flops(model, (len(layout.bands), side_px, side_px))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(r.ema), use_buffers=True) if r.ema else None

    def total(moments: torch.Tensor, name: str) -> torch.Tensor:
        with clock("communication"):
            return comm.sum(moments, name)

    if r.norm == "synchronised":
        synchronise_norm(model, comm, total)
    if r.compile != "none":  # batches have two sizes at most: a graph for each is faster than one for any
        model.compile(mode=r.compile, dynamic=False)
    return model, average, flops


def _feeds(
    r: TrainRecipe, comm: Comm, store: Store, stage: Stage, learnt: Targets, labels: np.ndarray, device: torch.device
) -> tuple[dict[str, Feed], list[int]]:
    """Of train and val, and the patches of both that have no label among those that are learnt. Collective."""
    cores, kept = cores_of(comm), learnt.labelled(store.labels)
    feeds, left_out = {}, []
    for split in ("train", "val"):
        numbers, train = store.split(split), split == "train"
        left_out += numbers[~kept[numbers]].tolist()
        numbers = numbers[kept[numbers]]
        if not len(numbers):
            raise StoreError(f"{store.folder}: no patch of its {split} split has any of the classes of {r.labels}")
        if train:
            numbers = subset(numbers, r.subset, r.seed)
        dealt = shuffled_labels(labels, numbers, r.seed) if r.control != "none" and train else labels
        plan = _plan(r, comm, numbers, dealt[numbers], train)
        feeds[split] = Feed(store, plan, r.feed, train, dealt, device=device, cores=cores, path_of=stage.path_of)
    _check_shares(r, comm, feeds["train"].plan.order)
    return feeds, left_out


def _plan(r: TrainRecipe, comm: Comm, numbers: np.ndarray, labels: np.ndarray, train: bool) -> Plan:
    """labels: (n, class), of the patches `numbers`."""
    if not train:
        return Plan(Order(len(numbers), r.batch, r.seed, shuffle=False), numbers, comm.rank, comm.size)
    often = repeats(labels, r.oversample.share, r.oversample.most) if r.oversample.share else None
    unit = 2 if r.feed.augment.mixup else 1
    count = len(numbers) if often is None else drawn_count(often)
    order = Order(count, r.batch, r.seed, block=r.feed.block, unit=unit, parts=r.accumulate)
    return Plan(order, numbers, comm.rank, comm.size, often)


def _check_shares(r: TrainRecipe, comm: Comm, order: Order) -> None:
    """RecipeError where a rank would have no patch of the smallest part of a step."""
    if order.count // order.steps <= (comm.size - 1) * order.unit:
        parts = f" in {r.accumulate} parts" if r.accumulate > 1 else ""
        raise RecipeError(
            f"batch = {r.batch}{parts} over {comm.size} ranks leaves some without a patch; take more, or fewer ranks"
        )


def shuffled_labels(labels: np.ndarray, numbers: np.ndarray, seed: int) -> np.ndarray:
    """(patch, class): the labels with those of the patches `numbers` dealt out among them anew."""
    shuffled = labels.copy()
    shuffled[numbers] = labels[numbers[permute(np.arange(len(numbers)), len(numbers), key(seed, _SHUFFLE))]]
    return shuffled
