"""Figures of a classification, from the scores of every patch, each counted once.

Truth and prediction are (patch, class) of 0 and 1; with one class a patch each row has a single 1. Counts are
integers, so nothing here depends on the order of patches, nor on which rank scored them.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score

RATIOS = ("f1", "precision", "recall")


@dataclass(frozen=True)
class Score:
    """Per class: integer counts and what follows from them.

    A ratio without denominator is 0: a class that is never predicted has precision 0, a patch without a label and
    without a prediction has F1 0 (scikit-learn's zero_division=0). Macro means are over the classes that occur among
    the patches; so is `map`, the mean of the average precisions.
    """

    patches: int
    support: np.ndarray  # (class,) int64: patches that carry the class
    predicted: np.ndarray  # (class,) int64: patches said to carry it
    hits: np.ndarray  # (class,) int64: both
    average_precision: np.ndarray  # (class,) float64, nan without support
    samples: dict[str, float]  # RATIOS over each patch's own classes, mean over patches
    confusion: np.ndarray | None = None  # (true class, predicted class) int64, with one class a patch

    @property
    def precision(self) -> np.ndarray:
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        return _ratio(self.hits, self.support)

    @property
    def f1(self) -> np.ndarray:
        return _ratio(2 * self.hits, self.predicted + self.support)

    def counts(self) -> dict[str, np.ndarray]:
        """(class,) int64 each: patches where the class was rightly and wrongly said to be absent and to be there, the
        cells of scikit-learn's multilabel_confusion_matrix."""
        wrong, missed = self.predicted - self.hits, self.support - self.hits
        return {"tn": self.patches - self.hits - wrong - missed, "fp": wrong, "fn": missed, "tp": self.hits}

    def micro(self) -> dict[str, float]:
        found = _ratios(self.hits.sum(), self.predicted.sum(), self.support.sum())
        return {n: float(v) for n, v in found.items()}

    def macro(self) -> dict[str, float]:
        there = self.support > 0
        if not there.any():
            return dict.fromkeys(RATIOS, 0.0)
        return {n: float(getattr(self, n)[there].mean()) for n in RATIOS}

    def map(self) -> float:
        return float(np.nanmean(self.average_precision)) if (self.support > 0).any() else 0.0

    def summary(self) -> dict[str, float]:
        """The figures of an epoch's line. With one class a patch, micro F1 is the accuracy."""
        micro, macro = self.micro(), self.macro()
        return {
            "micro_f1": micro["f1"],
            "macro_f1": macro["f1"],
            "samples_f1": self.samples["f1"],
            "micro_recall": micro["recall"],
            "macro_recall": macro["recall"],
            "map": self.map(),
        }


def multilabel(scores: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray) -> Score:
    """scores: (patch, class) in 0..1; labels: (patch, class) 0 or 1; threshold: of all classes, or (class,)."""
    return score(scores, labels > 0, reached(scores, threshold))


def reached(scores: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """(patch, class) bool: which classes are predicted, those with a score of the threshold at least."""
    said: np.ndarray = scores.astype(np.float64) >= threshold  # numpy before 2 would round a number to float32
    return said


def highest(scores: np.ndarray) -> np.ndarray:
    """(patch, class) bool: the one class with the highest score, of equals the first."""
    said: np.ndarray = scores.argmax(1)[:, None] == np.arange(scores.shape[1]) if len(scores) else scores > 0
    return said


def score(scores: np.ndarray, truth: np.ndarray, said: np.ndarray, single: bool = False) -> Score:
    """Figures of a prediction. All (patch, class): scores in 0..1, truth and said bool. single: one class a patch.

    Average precision is the area under the step-wise precision-recall curve (scikit-learn's definition).
    """
    both, support = truth & said, truth.sum(0)
    ap = [average_precision_score(truth[:, c], scores[:, c]) if n else np.nan for c, n in enumerate(support)]
    confusion = truth.T.astype(np.int64) @ said if single else None
    return Score(len(truth), support, said.sum(0), both.sum(0), np.array(ap), _of_patches(both, said, truth), confusion)


def _of_patches(both: np.ndarray, said: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """RATIOS of each patch, mean over patches; 0 without any."""
    each = _ratios(both.sum(1), said.sum(1), truth.sum(1))
    return {n: float(v.mean()) if len(v) else 0.0 for n, v in each.items()}


def _ratios(hits: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> dict[str, np.ndarray]:
    each = (_ratio(2 * hits, predicted + support), _ratio(hits, predicted), _ratio(hits, support))
    return dict(zip(RATIOS, each, strict=True))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.shape(a), float), where=np.asarray(b) > 0)


# ---- thresholds


def tuned(scores: np.ndarray, labels: np.ndarray, otherwise: float = 0.5) -> np.ndarray:
    """(class,) float64: thresholds with the highest F1 that any has on these patches, class by class.

    scores: (patch, class) in 0..1; labels: (patch, class) 0 or 1. A threshold lies halfway between two scores that
    follow each other. Where `otherwise` is among the best it stays, so also for classes without support, whose F1 is
    0 at all thresholds. Of other equals that nearest to `otherwise` is taken, then the higher. Sorting is the work:
    O(n log n) a class.
    """
    return np.array([_best_threshold(scores[:, c], labels[:, c] > 0, otherwise) for c in range(scores.shape[1])])


def _best_threshold(scores: np.ndarray, truth: np.ndarray, otherwise: float) -> float:
    """scores: (patch,); truth: (patch,) bool."""
    if not truth.any():
        return otherwise
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order].astype(np.float64), np.cumsum(truth[order])
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    f1 = 2 * hits[last] / (last + 1 + truth.sum())  # of saying the class for the first `last` + 1
    said = reached(scores, otherwise)
    if 2 * (truth & said).sum() / (truth.sum() + said.sum()) >= f1.max():
        return otherwise
    lowest, below = ranked[last], np.append(ranked[last[1:]], 0.0)
    middle = (lowest + below) / 2
    cut = np.where(middle > below, middle, lowest)  # two scores may have no number between them
    best = np.flatnonzero(f1 == f1.max())  # equal fractions are equal floats: one division, rounded once
    return float(cut[best[np.argmin(np.abs(cut[best] - otherwise))]])  # the first, so the higher
