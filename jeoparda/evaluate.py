"""Evaluation: every patch of a split once, on all ranks, and the figures per class."""

import base64
import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from jeoparda import checkpoint, losses
from jeoparda.comm import Backend, Comm, cores_of, device_of
from jeoparda.config import REQUIRED, check, opt, recipe
from jeoparda.errors import CheckpointError, JeopardaError, RecipeError
from jeoparda.feed import Feed, FeedRecipe, Plan, check_images
from jeoparda.files import whole
from jeoparda.metrics import Score
from jeoparda.models import ModelRecipe, build
from jeoparda.nomenclature import coarser
from jeoparda.order import Order
from jeoparda.store import Group, Layout, Store
from jeoparda.targets import Targets, restored


@recipe
class EvaluateRecipe:
    """jeoparda evaluate: figures per class of a trained run over a split of a store."""

    run: Path = opt(REQUIRED, "folder of the training run")
    store: Path = opt(REQUIRED, "store to judge by; its bands must be the run's, its classes be or make the run's")
    split: Literal["test", "val", "train", "all"] = opt("test", "which patches")
    checkpoint: Literal["best", "last"] = opt("best", "best: highest validation micro F1")
    thresholds: Literal["run", "fixed"] = opt(
        "run", "run: each class's own where the run has tuned them on validation; fixed: the run's one for all"
    )
    batch: int = opt(64, "patches at a time over all ranks", "patches", ge=1)
    feed: FeedRecipe = opt(FeedRecipe, "how batches are made")
    comm: Backend = opt("auto", "auto: Horovod when a launcher started more than one rank")
    samples: int = opt(12, "patches kept with picture, truth and prediction, for the report", ge=0)


@dataclass(frozen=True)
class Trained:
    """A network ready for use, and what its checkpoint says it wants."""

    path: Path
    model: nn.Module
    about: dict[str, Any]
    thresholds: list[float] | None = None  # per class, where they were tuned on the run's validation split

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(b for g in self.about["groups"] for b in g["bands"])


def load(run_folder: Path, which: str = "best") -> Trained:
    """The network of a run, in evaluation mode on the CPU. CheckpointError where there is none."""
    if which == "best":
        path = run_folder / "checkpoints" / "best.pt"
        state = checkpoint.load(path)
    else:
        found = checkpoint.newest(run_folder)
        if found is None:
            raise CheckpointError(f"{run_folder}: holds no checkpoint; `jeoparda train` writes them")
        path, state = found
    about = state["about"]
    model = build(check(ModelRecipe, about["model"], str(path)), layout_of(about), len(about["classes"]))
    model.load_state_dict(state.get("average") or state["model"])  # as validation did
    return Trained(path, model.eval(), about, state.get("thresholds"))


def layout_of(about: dict[str, Any]) -> Layout:
    """Of the images that a checkpoint's network takes."""
    return Layout(tuple(Group(**g | {"bands": tuple(g["bands"])}) for g in about["groups"]))


def infer(
    model: nn.Module,
    feed: Feed,
    device: torch.device,
    comm: Comm,
    targets: Targets,
    beat: Callable[[], None] = lambda: None,
    context: AbstractContextManager[object] | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Every patch of the feed's plan, on every rank alike. The feed's labels are `targets.of` the store's.

    beat: called once a batch. context: that the network runs in, as autocast; entered anew for each batch.
    Returns patch numbers (n,), ascending; probabilities (n, class) float32; the mean plain cross-entropy.
    """
    model.eval()
    dtype = next(model.parameters()).dtype
    numbers, logits = [], []
    loss = torch.zeros((), dtype=torch.float64, device=device)
    feed.restore({"epoch": 0, "step": 0})
    with torch.inference_mode():
        for batch in feed:  # nothing here waits for the device: it works through batches as they come
            image = batch["image"].to(device, dtype, memory_format=torch.channels_last, non_blocking=True)
            with context or nullcontext():
                out = model(image)
            # a copy, for CUDA graphs write the next output over this one
            logits.append(out.to(torch.promote_types(out.dtype, torch.float32), copy=True))
            loss += losses.plain(logits[-1], batch["labels"].to(device, dtype, non_blocking=True), targets.task)
            numbers.append(batch["number"].numpy())
            beat()
        score = targets.probabilities(torch.cat(logits)).float().cpu().numpy()
    parts = comm.gather((np.concatenate(numbers), score, loss.item()), "evaluate.scores")
    number, score = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if not np.isfinite(score).all():
        raise JeopardaError(
            "the network's probabilities are not finite: its training has diverged; take a smaller optimizer.lr, or an "
            "earlier checkpoint"
        )
    order = np.argsort(number)  # so that nothing depends on who did which patch
    return number[order], score[order], sum(part[2] for part in parts) / max(len(number), 1)


def run(r: EvaluateRecipe, comm: Comm) -> dict[str, Any]:
    """Evaluate, write RUN/evaluation.json (rank 0) and return what it holds.

    RecipeError, CheckpointError or StoreError before any work where recipe, run and store do not go together.
    """
    store = Store(r.store)
    trained = load(r.run, r.checkpoint)
    targets = _targets(trained, store)
    _check_feed(r, trained)
    threshold = _threshold(r, trained)
    labels, split = targets.of(store.labels), store.split(r.split)
    chosen = split[targets.labelled(store.labels[split])]
    if not len(chosen):
        raise RecipeError(f"split = {r.split}: none of its {len(split)} patches has a class that the run was taught")
    device = device_of(comm)
    feed = _feed(r, trained, store, chosen, labels, comm, device)
    numbers, scores, loss = infer(trained.model.to(device), feed, device, comm, targets)
    labels = labels[numbers]
    result = {
        "run": str(r.run),
        "checkpoint": trained.path.name,
        "store": str(r.store),
        "split": r.split,
        "patches": len(numbers),
        "left_out": len(split) - len(numbers),
        "labels": targets.labels,
        "task": targets.task,
        "loss": loss,
        "threshold": trained.about["threshold"],
        "thresholds": "fixed" if isinstance(threshold, float) else "per-class",
        **_figures(targets, targets.score(scores, labels, threshold), threshold),
        "levels": {
            str(level): _figures(up, score) for level, (up, score) in targets.levels(scores, labels, threshold).items()
        },
    }
    if comm.rank == 0:
        result["samples"] = _samples(store, targets, numbers, scores, labels, threshold, r.samples)
        with whole(r.run / "evaluation.json") as draft:
            draft.write_text(json.dumps(result, indent=1) + "\n")
        print(_spoken(r, result))
    return result


def _spoken(r: EvaluateRecipe, result: dict[str, Any]) -> str:
    micro, macro, samples = (result[kind]["f1"] for kind in ("micro", "macro", "samples_average"))
    first = f"accuracy {micro:.3f}" if result["task"] == "single-label" else f"micro F1 {micro:.3f}"
    means = "" if result["task"] == "single-label" else f"samples F1 {samples:.3f}, "
    return (
        f"{r.run}: {result['patches']} patches of {r.split}: {first}, macro F1 {macro:.3f}, {means}"
        f"mAP {result['map']:.3f}; {r.run / 'evaluation.json'}"
    )


def _check_feed(r: EvaluateRecipe, trained: Trained) -> None:
    check_images(r.feed)
    if r.feed.bands:
        raise RecipeError(f"feed.bands = {list(r.feed.bands)}: the run's bands are taken, {', '.join(trained.bands)}")
    if r.feed.stage != "none" or r.feed.journal:
        raise RecipeError("feed.stage, feed.journal: are of training, which reads a store many times; leave them out")


def _threshold(r: EvaluateRecipe, trained: Trained) -> float | np.ndarray:
    """The run's one for all classes, or (class,) of its own. RecipeError where these may be judged by the patches that
    they were tuned on: also of another store, which may hold the same ones."""
    if trained.thresholds is None or r.thresholds == "fixed":
        return float(trained.about["threshold"])
    if r.split in ("val", "all"):
        raise RecipeError(
            f"split = {r.split}: the run's thresholds were tuned on validation patches, and would look better than "
            "they are; take split = test, or thresholds = fixed"
        )
    return np.array(trained.thresholds)


def _feed(
    r: EvaluateRecipe,
    trained: Trained,
    store: Store,
    chosen: np.ndarray,
    labels: np.ndarray,
    comm: Comm,
    device: torch.device,
) -> Feed:
    """The patches `chosen` as the network saw those it was trained on."""
    plan = Plan(Order(len(chosen), r.batch, 0, shuffle=False), chosen, comm.rank, comm.size)
    how = replace(r.feed, bands=trained.bands)  # type: ignore[type-var]  # mypy does not see through `recipe`
    return Feed(store, plan, how, False, labels, _statistics(trained), device, cores_of(comm))


def _statistics(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
    """(band,) mean and standard deviation that the network was trained with."""
    return np.array(trained.about["mean"], np.float32), np.array(trained.about["std"], np.float32)


def _targets(trained: Trained, store: Store) -> Targets:
    """What the run was taught, of this store's labels. CheckpointError where run and store do not go together."""
    try:
        targets = restored(trained.about, store.info)
    except RecipeError as e:
        learnt = ", ".join(trained.about["classes"][:3])
        raise CheckpointError(
            f"{trained.path}: learnt {learnt} ... (labels = {trained.about.get('labels', 'store')}), which the classes "
            f"of {store.folder} do not make; judge it by a store of the same classes, or of the 43 of BigEarthNet v1"
        ) from e
    there = _grids(map(asdict, store.info.groups))
    others = {band: grid for band, grid in _grids(trained.about["groups"]).items() if there.get(band) != grid}
    pairs = (
        ("bands", trained.bands, tuple(b for b in store.info.bands if b in trained.bands)),
        ("classes", tuple(trained.about["classes"]), targets.classes),
        ("sensor", trained.about["sensor"], store.info.sensor),
        ("unit", trained.about["unit"], store.info.unit),
        ("pixels", others, {band: there.get(band) for band in others}),
    )
    for what, has, wants in pairs:
        if has != wants:
            raise CheckpointError(f"{trained.path}: its {what} are {has}, the store {store.folder} has {wants}")
    return targets


def _grids(groups: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Of each band: which pixels it comes in."""
    return {band: f"{g['size_px']} px of {g['pixel_m']} m, {g['dtype']}" for g in groups for band in g["bands"]}


def _figures(targets: Targets, score: Score, threshold: float | np.ndarray | None = None) -> dict[str, Any]:
    """Means over classes and patches, and a row a class; threshold: None on levels above that of the prediction."""
    figures = {"micro": score.micro(), "macro": score.macro(), "samples_average": score.samples, "map": score.map()}
    if score.confusion is not None:
        figures["confusion"] = score.confusion.tolist()  # [true class][predicted class]
    return figures | {"classes": _per_class(targets, score, threshold)}


def _per_class(targets: Targets, score: Score, threshold: float | np.ndarray | None) -> list[dict[str, Any]]:
    counts, parents = score.counts(), _parents(targets)
    used = None if threshold is None or targets.single else np.broadcast_to(threshold, len(targets.classes))
    return [
        {
            "name": name,
            "color": list(targets.colors[c]),
            "parent": parents[c],
            "support": int(score.support[c]),
            "predicted": int(score.predicted[c]),
            **{cell: int(n[c]) for cell, n in counts.items()},
            "threshold": None if used is None else float(used[c]),
            "precision": float(score.precision[c]),
            "recall": float(score.recall[c]),
            "f1": float(score.f1[c]),
            "ap": float(score.average_precision[c]) if score.support[c] else None,
        }
        for c, name in enumerate(targets.classes)
    ]


def _parents(targets: Targets) -> list[str | None]:
    """Of each class, the one of the next CORINE level that it falls into; None where there is none."""
    if targets.level < 2:
        return [None] * len(targets.classes)
    names, _, matrix = coarser(targets.classes, f"corine-{targets.level - 1}")
    return [names[i] for i in matrix.argmax(1)]


def _samples(
    store: Store,
    targets: Targets,
    numbers: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    threshold: float | np.ndarray,
    count: int,
) -> list[dict[str, Any]]:
    """Evenly spaced patches of the split, good and bad as they come. scores, labels: (patch, class), of `numbers`."""
    from jeoparda.raster import png  # GDAL is not everywhere where a run is trained

    names, said = np.array(targets.classes), targets.said(scores, threshold)
    ids = store.column("id")
    rows = np.unique(np.linspace(0, len(numbers) - 1, min(count, len(numbers))).astype(int))
    return [
        {
            "id": str(ids[numbers[i]]),
            "truth": names[labels[i] > 0].tolist(),
            "predicted": names[said[i]].tolist(),
            "scores": {n: round(float(p), 4) for n, p in zip(targets.classes, scores[i], strict=True) if p >= 0.05},
            "png": base64.b64encode(png(true_color(store, int(numbers[i])))).decode(),
        }
        for i in rows
    ]


def true_color(store: Store, number: int) -> np.ndarray:
    """(row, col, 3) uint8 of one patch; its first band in grey where the store knows no true colour."""
    rgb = store.info.rgb or store.info.bands[:1] * 3
    return stretch(np.stack([store.band(number, b) for b in rgb], -1))


def stretch(rgb: np.ndarray) -> np.ndarray:
    """(row, col, 3) -> uint8: from the 2nd to the 98th percentile over the three bands together. A flat scene, such
    as the sea, is not stretched into noise: uint16 reflectances span 0.03 at least."""
    low, high = np.percentile(rgb[rgb > 0], (2, 98)) if (rgb > 0).any() else (0, 1)
    least = 300.0 if rgb.dtype == np.uint16 else 1e-6
    return (np.clip((rgb - low) / max(high - low, least), 0, 1) * 255).astype(np.uint8)
