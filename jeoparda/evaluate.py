"""Evaluation: every patch of a split once, on all ranks, and the figures per class."""

import base64
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from jeoparda import checkpoint, losses
from jeoparda.comm import Backend, Comm, cores_of, device_of
from jeoparda.config import REQUIRED, check, opt, recipe
from jeoparda.errors import CheckpointError, RecipeError
from jeoparda.feed import Feed, FeedRecipe, Plan, check_images
from jeoparda.files import whole
from jeoparda.metrics import MultilabelScore, multilabel
from jeoparda.models import ModelRecipe, build
from jeoparda.order import Order
from jeoparda.raster import png
from jeoparda.store import Store


@recipe
class EvaluateRecipe:
    """jeoparda evaluate: figures per class of a trained run over a split of a store."""

    run: Path = opt(REQUIRED, "folder of the training run")
    store: Path = opt(REQUIRED, "store to judge by; its bands and classes must be the run's")
    split: Literal["test", "val", "train", "all"] = opt("test", "which patches")
    checkpoint: Literal["best", "last"] = opt("best", "best: highest validation micro F1")
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
    bands = sum(len(g["bands"]) for g in about["groups"])
    model = build(check(ModelRecipe, about["model"], str(path)), bands, len(about["classes"]))
    model.load_state_dict(state.get("average") or state["model"])  # as validation did
    return Trained(path, model.eval(), about)


def infer(model: nn.Module, feed: Feed, device: torch.device, comm: Comm) -> tuple[np.ndarray, np.ndarray, float]:
    """Every patch of the feed's plan, on every rank alike.

    Returns patch numbers (n,), ascending; probabilities (n, class) float32; the mean loss.
    """
    model.eval()
    dtype = next(model.parameters()).dtype
    numbers, scores, loss = [], [], 0.0
    feed.restore({"epoch": 0, "step": 0})
    with torch.inference_mode():
        for batch in feed:
            logits = model(batch["image"].to(device, dtype, memory_format=torch.channels_last))
            loss += losses.multilabel(logits, batch["labels"].to(device, dtype)).item()
            numbers.append(batch["number"].numpy())
            scores.append(logits.sigmoid().float().cpu().numpy())
    parts = comm.gather((numbers, scores, loss), "evaluate.scores")
    number = np.concatenate([n for part in parts for n in part[0]])
    score = np.concatenate([s for part in parts for s in part[1]])
    order = np.argsort(number)  # so that nothing depends on who did which patch
    return number[order], score[order], sum(part[2] for part in parts) / max(len(number), 1)


def run(r: EvaluateRecipe, comm: Comm) -> dict[str, Any]:
    """Evaluate, write RUN/evaluation.json (rank 0) and return what it holds."""
    store = Store(r.store)
    trained = load(r.run, r.checkpoint)
    _check_fit(trained, store)
    check_images(r.feed)
    if r.feed.bands:
        raise RecipeError(f"feed.bands = {list(r.feed.bands)}: the run's bands are taken, {', '.join(trained.bands)}")
    if r.feed.stage != "none" or r.feed.journal:
        raise RecipeError("feed.stage, feed.journal: are of training, which reads a store many times; leave them out")
    chosen = store.split(r.split)
    plan = Plan(Order(len(chosen), r.batch, 0, shuffle=False), chosen, comm.rank, comm.size)
    device = device_of(comm)
    how = replace(r.feed, bands=trained.bands)  # type: ignore[type-var]  # mypy does not see through `recipe`
    feed = Feed(store, plan, how, False, store.labels, _statistics(trained), device, cores_of(comm))
    numbers, scores, loss = infer(trained.model.to(device), feed, device, comm)
    threshold = trained.about["threshold"]
    figures = multilabel(scores, store.labels[numbers], threshold)
    result = {
        "run": str(r.run),
        "checkpoint": trained.path.name,
        "store": str(r.store),
        "split": r.split,
        "patches": len(numbers),
        "loss": loss,
        "threshold": threshold,
        "micro": figures.micro(),
        "macro": figures.macro(),
        "map": figures.map(),
        "classes": _per_class(figures, store),
    }
    if comm.rank == 0:
        result["samples"] = _samples(store, numbers, scores, threshold, r.samples)
        with whole(r.run / "evaluation.json") as draft:
            draft.write_text(json.dumps(result, indent=1) + "\n")
        print(
            f"{r.run}: {len(numbers)} patches of {r.split}: micro F1 {result['micro']['f1']:.3f}, "
            f"macro F1 {result['macro']['f1']:.3f}, mAP {result['map']:.3f}; {r.run / 'evaluation.json'}"
        )
    return result


def _statistics(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
    """(band,) mean and standard deviation that the network was trained with."""
    return np.array(trained.about["mean"], np.float32), np.array(trained.about["std"], np.float32)


def _check_fit(trained: Trained, store: Store) -> None:
    there = _grids(map(asdict, store.info.groups))
    others = {band: grid for band, grid in _grids(trained.about["groups"]).items() if there.get(band) != grid}
    pairs = (
        ("bands", trained.bands, tuple(b for b in store.info.bands if b in trained.bands)),
        ("classes", tuple(trained.about["classes"]), store.info.classes),
        ("sensor", trained.about["sensor"], store.info.sensor),
        ("unit", trained.about["unit"], store.info.unit),
        ("pixels", others, {band: there.get(band) for band in others}),
    )
    for what, has, wants in pairs:
        if has != wants:
            raise CheckpointError(f"{trained.path}: its {what} are {has}, the store {store.folder} has {wants}")


def _grids(groups: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Of each band: which pixels it comes in."""
    return {band: f"{g['size_px']} px of {g['pixel_m']} m, {g['dtype']}" for g in groups for band in g["bands"]}


def _per_class(figures: MultilabelScore, store: Store) -> list[dict[str, Any]]:
    colors = store.info.colors
    return [
        {
            "name": name,
            "color": list(colors[c]),
            "support": int(figures.support[c]),
            "predicted": int(figures.predicted[c]),
            "precision": float(figures.precision[c]),
            "recall": float(figures.recall[c]),
            "f1": float(figures.f1[c]),
            "ap": float(figures.average_precision[c]) if figures.support[c] else None,
        }
        for c, name in enumerate(store.info.classes)
    ]


def _samples(
    store: Store, numbers: np.ndarray, scores: np.ndarray, threshold: float, count: int
) -> list[dict[str, Any]]:
    """Evenly spaced patches of the split, good and bad as they come."""
    names = store.info.classes
    ids = store.column("id")
    rows = np.unique(np.linspace(0, len(numbers) - 1, min(count, len(numbers))).astype(int))
    return [
        {
            "id": str(ids[numbers[i]]),
            "truth": [n for n, has in zip(names, store.labels[numbers[i]], strict=True) if has],
            "predicted": [n for n, p in zip(names, scores[i], strict=True) if p >= threshold],
            "scores": {n: round(float(p), 4) for n, p in zip(names, scores[i], strict=True) if p >= 0.05},
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
