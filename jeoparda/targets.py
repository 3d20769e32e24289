"""What a network is taught: which classes, made of the store's, and whether a patch carries one of them or several.

Training, evaluation and prediction ask here how labels become targets, logits probabilities, and those figures.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from jeoparda import metrics
from jeoparda.errors import RecipeError
from jeoparda.metrics import Score
from jeoparda.nomenclature import Color, coarser, corine_level
from jeoparda.store import Contents

Labels = Literal["store", "bigearthnet-19", "corine-2", "corine-1"]
Task = Literal["auto", "multi-label", "single-label"]
Kind = Literal["multi-label", "single-label"]


@dataclass(frozen=True, eq=False)
class Targets:
    """The classes that are learnt. matrix: (store class, class) uint8, 1 where the one falls into the other."""

    labels: Labels
    task: Kind
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    matrix: np.ndarray

    @property
    def single(self) -> bool:
        return self.task == "single-label"

    def of(self, labels: np.ndarray) -> np.ndarray:
        """(patch, class) uint8 of the store's (patch, store class): a class is there if any of its members is.

        RecipeError for single-label targets where a patch that is kept has none or several.
        """
        out = self._any(labels).astype(np.uint8)
        if self.single:
            found = out.sum(1)
            wrong = np.flatnonzero((found > 1) | ((found == 0) & ~np.any(labels, axis=1)))
            if len(wrong):
                raise RecipeError(
                    f"task = single-label: {len(wrong)} of {len(labels)} patches have not exactly one class; patch "
                    f"{wrong[0]} has {found[wrong[0]]}; take task = multi-label, or coarser `labels`"
                )
        return out

    def labelled(self, labels: np.ndarray) -> np.ndarray:
        """(patch,) bool: which patches are kept. One that has labels in the store and loses all of them is left out,
        as ingest leaves it out for these classes; one that the store holds without any stays, and shows none."""
        kept: np.ndarray = self._any(labels).any(axis=1) | ~np.any(labels, axis=1)
        return kept

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of logits, both (patch, class)."""
        return probabilities(logits, self.task)

    def said(self, scores: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
        """(patch, class) bool: the classes that are predicted. threshold: one for all or (class,); single-label
        targets need none, the most probable class is taken."""
        return metrics.highest(scores) if self.single else metrics.reached(scores, threshold)

    def score(self, scores: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray) -> Score:
        """Figures of probabilities against `of` the labels, both (patch, class)."""
        return metrics.score(scores, labels > 0, self.said(scores, threshold), self.single)

    def levels(
        self, scores: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray
    ) -> dict[int, tuple["Targets", Score]]:
        """CORINE level -> its classes and the figures of the same prediction there, for levels above these classes'.

        A coarser class is there, or predicted, if any of its members is; its score is the largest of theirs. Empty
        where these are no classes of one level.
        """
        said, out = self.said(scores, threshold), {}
        for level in range(2, 0, -1):
            if level < self.level:
                up = _built(self.classes, self.colors, f"corine-{level}", self.task)  # type: ignore[arg-type]
                largest = np.stack([scores[:, m > 0].max(1) for m in up.matrix.T], 1)
                out[level] = up, metrics.score(largest, up._any(labels), up._any(said), self.single)
        return out

    @property
    def level(self) -> int:
        """Of CORINE, 0 where these classes are of none."""
        known = {"bigearthnet-19": 0, "corine-2": 2, "corine-1": 1}
        return known[self.labels] if self.labels in known else corine_level(self.classes) or 0

    def _any(self, there: np.ndarray) -> np.ndarray:
        """(patch, class) bool of (patch, member)."""
        found: np.ndarray = there > 0 if self.labels == "store" else there.astype(np.uint8) @ self.matrix > 0
        return found

    def about(self) -> dict[str, Any]:
        """What a checkpoint keeps, of plain types."""
        return {
            "labels": self.labels,
            "task": self.task,
            "classes": list(self.classes),
            "colors": [list(c) for c in self.colors],
        }


def build(info: Contents, labels: Labels = "store", task: Task = "auto") -> Targets:
    """The targets of a store by a recipe's keys. task auto: single-label for a store of chips with a label each.

    RecipeError where `labels` cannot be made of the store's classes, or one class is to be told from no other.
    """
    kind: Kind = ("single-label" if info.target == "label" else "multi-label") if task == "auto" else task
    targets = _built(info.classes, info.colors, labels, kind)
    if targets.single and len(targets.classes) < 2:
        raise RecipeError(f"task = single-label: there is one class only, {targets.classes[0]}; take finer `labels`")
    return targets


def restored(about: dict[str, Any], info: Contents) -> Targets:
    """The targets that a checkpoint was taught, made of this store's classes: a store may hold what the run made of
    another's. A checkpoint from before there was a choice: multi-label, of the store's own classes. RecipeError where
    this store's classes do not make them."""
    given = list(info.classes) == about["classes"]
    return build(info, "store" if given else about.get("labels", "store"), about.get("task", "multi-label"))


def probabilities(logits: torch.Tensor, task: Kind = "multi-label") -> torch.Tensor:
    """(patch, class) in 0..1 of logits: of each class by itself, or, single-label, of one out of all."""
    return logits.softmax(1) if task == "single-label" else logits.sigmoid()


def _built(classes: tuple[str, ...], colors: tuple[Color, ...], labels: Labels, task: Kind) -> Targets:
    if labels == "store":
        return Targets(labels, task, tuple(classes), tuple(colors), np.eye(len(classes), dtype=np.uint8))
    return Targets(labels, task, *coarser(classes, labels))
