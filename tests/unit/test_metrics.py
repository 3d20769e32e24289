"""Figures against scikit-learn's, and where they have no denominator."""

import numpy as np
import pytest
from sklearn import metrics as sk

from jeoparda.metrics import multilabel


def case(seed: int, patches: int = 200, classes: int = 7, empty: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((patches, classes)) < rng.uniform(0.05, 0.6, classes)).astype(np.uint8)
    labels[:, list(empty)] = 0
    scores = np.clip(0.45 * labels + rng.uniform(0, 0.7, labels.shape), 0, 1).round(2)  # with ties
    return scores, labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("empty", [(), (2,), (0, 5, 6)])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_against_scikit_learn(seed, empty, threshold):
    scores, labels = case(seed, empty=empty)
    m = multilabel(scores, labels, threshold)
    said = scores >= threshold
    there = np.flatnonzero(labels.any(0))
    for name, reference in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        for average, mine in (("micro", m.micro()), ("macro", m.macro())):
            over = range(labels.shape[1]) if average == "micro" else there
            expected = reference(labels, said, average=average, labels=list(over), zero_division=0)
            assert mine[name] == pytest.approx(expected, abs=1e-12)
        each = reference(labels, said, average=None, zero_division=0)
        np.testing.assert_allclose(getattr(m, name), each, atol=1e-12)
    ap = [sk.average_precision_score(labels[:, c], scores[:, c]) for c in there]
    np.testing.assert_allclose(m.average_precision[there], ap, atol=1e-12)
    assert np.isnan(m.average_precision[list(empty)]).all()
    assert m.map() == pytest.approx(np.mean(ap), abs=1e-12)
    assert m.support.tolist() == labels.sum(0).tolist() and m.predicted.tolist() == said.sum(0).tolist()


def test_by_hand():
    labels = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    scores = np.array([[0.9, 0.1], [0.4, 0.1], [0.5, 0.1], [0.1, 0.9]])
    m = multilabel(scores, labels, 0.5)  # exactly at the threshold counts as predicted
    assert m.hits.tolist() == [1, 0] and m.predicted.tolist() == [2, 1] and m.support.tolist() == [2, 0]
    assert m.micro() == pytest.approx({"f1": 0.4, "precision": 1 / 3, "recall": 0.5})
    assert m.macro() == {"f1": 0.5, "precision": 0.5, "recall": 0.5}  # the class that never occurs is left out
    assert m.map() == pytest.approx((1 + 2 / 3) / 2)
    assert m.summary() == {
        "micro_f1": m.micro()["f1"], "macro_f1": 0.5, "micro_recall": 0.5, "macro_recall": 0.5, "map": m.map(),
    }  # fmt: skip


def test_perfect_and_hopeless():
    _, labels = case(0)
    assert set(multilabel(labels.astype(float), labels, 0.5).summary().values()) == {1.0}
    hopeless = multilabel(1.0 - labels, labels, 0.5).summary()
    assert hopeless["micro_f1"] == hopeless["macro_recall"] == 0


def test_nothing_there_and_nothing_said():
    m = multilabel(np.zeros((5, 3)), np.zeros((5, 3), np.uint8), 0.5)
    assert set(m.summary().values()) == {0.0} and set(m.micro().values()) == {0.0}
    none = multilabel(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), 0.5)
    assert set(none.summary().values()) == {0.0}
