"""Figures of a multi-label classification, from the scores of every patch, each counted once."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score


@dataclass(frozen=True)
class MultilabelScore:
    """Per class: integer counts and what follows from them; nan where a class has no patch to be right about.

    A ratio without denominator is 0: a class that is never predicted has precision 0. Macro means are over the
    classes that occur among the patches; so is `map`, the mean of the average precisions.
    """

    support: np.ndarray  # (class,) int64: patches that carry the class
    predicted: np.ndarray  # (class,) int64: patches said to carry it
    hits: np.ndarray  # (class,) int64: both
    average_precision: np.ndarray  # (class,) float64, nan without support

    @property
    def precision(self) -> np.ndarray:
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        return _ratio(self.hits, self.support)

    @property
    def f1(self) -> np.ndarray:
        return _ratio(2 * self.hits, self.predicted + self.support)

    def micro(self) -> dict[str, float]:
        hits, predicted, support = self.hits.sum(), self.predicted.sum(), self.support.sum()
        return {
            "f1": float(_ratio(2 * hits, predicted + support)),
            "precision": float(_ratio(hits, predicted)),
            "recall": float(_ratio(hits, support)),
        }

    def macro(self) -> dict[str, float]:
        there = self.support > 0
        if not there.any():
            return {"f1": 0.0, "precision": 0.0, "recall": 0.0}
        return {n: float(getattr(self, n)[there].mean()) for n in ("f1", "precision", "recall")}

    def map(self) -> float:
        return float(np.nanmean(self.average_precision)) if (self.support > 0).any() else 0.0

    def summary(self) -> dict[str, float]:
        """The figures of an epoch's line."""
        micro, macro = self.micro(), self.macro()
        return {
            "micro_f1": micro["f1"],
            "macro_f1": macro["f1"],
            "micro_recall": micro["recall"],
            "macro_recall": macro["recall"],
            "map": self.map(),
        }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.shape(a), float), where=np.asarray(b) > 0)


def multilabel(scores: np.ndarray, labels: np.ndarray, threshold: float) -> MultilabelScore:
    """scores: (patch, class) in 0..1; labels: (patch, class) 0 or 1; a class is predicted at scores >= threshold.

    Average precision is the area under the step-wise precision-recall curve (scikit-learn's definition).
    """
    truth, said = labels > 0, scores >= threshold
    support = truth.sum(0)
    ap = [average_precision_score(truth[:, c], scores[:, c]) if n else np.nan for c, n in enumerate(support)]
    return MultilabelScore(support, said.sum(0), (truth & said).sum(0), np.array(ap))
