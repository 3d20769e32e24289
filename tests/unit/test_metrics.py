"""Figures against scikit-learn's, and where they have no denominator; thresholds against all that there are."""

import numpy as np
import pytest
from sklearn import metrics as sk

from jeoparda.metrics import highest, multilabel, reached, score, tuned


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
    for name, reference in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        assert (~labels.any(1) | ~said.any(1)).any()  # some patches have nothing to be right about
        assert m.samples[name] == pytest.approx(reference(labels, said, average="samples", zero_division=0), abs=1e-12)
    cells = sk.multilabel_confusion_matrix(labels, said)
    mine = np.stack([m.counts()[n] for n in ("tn", "fp", "fn", "tp")], 1).reshape(-1, 2, 2)
    np.testing.assert_array_equal(mine, cells)


def test_by_hand():
    labels = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    scores = np.array([[0.9, 0.1], [0.4, 0.1], [0.5, 0.1], [0.1, 0.9]])
    m = multilabel(scores, labels, 0.5)  # exactly at the threshold counts as predicted
    assert m.hits.tolist() == [1, 0] and m.predicted.tolist() == [2, 1] and m.support.tolist() == [2, 0]
    assert m.micro() == pytest.approx({"f1": 0.4, "precision": 1 / 3, "recall": 0.5})
    assert m.macro() == {"f1": 0.5, "precision": 0.5, "recall": 0.5}  # the class that never occurs is left out
    assert m.map() == pytest.approx((1 + 2 / 3) / 2)
    assert m.summary() == {
        "micro_f1": m.micro()["f1"], "macro_f1": 0.5, "samples_f1": 0.25, "micro_recall": 0.5, "macro_recall": 0.5,
        "map": m.map(),
    }  # fmt: skip


def test_perfect_and_hopeless():
    _, labels = case(0)
    labels[~labels.any(1), 0] = 1  # a patch without any label is right to nobody's credit
    assert set(multilabel(labels.astype(float), labels, 0.5).summary().values()) == {1.0}
    hopeless = multilabel(1.0 - labels, labels, 0.5).summary()
    assert hopeless["micro_f1"] == hopeless["macro_recall"] == hopeless["samples_f1"] == 0


def test_nothing_there_and_nothing_said():
    m = multilabel(np.zeros((5, 3)), np.zeros((5, 3), np.uint8), 0.5)
    assert set(m.summary().values()) == {0.0} and set(m.micro().values()) == {0.0}
    none = multilabel(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), 0.5)
    assert set(none.summary().values()) == {0.0}


def test_each_class_has_its_threshold():
    scores, labels = case(1)
    own = np.linspace(0.2, 0.8, 7)
    each = [multilabel(scores[:, [c]], labels[:, [c]], float(t)) for c, t in enumerate(own)]
    m = multilabel(scores, labels, own)
    assert m.hits.tolist() == [int(e.hits[0]) for e in each] and m.f1.tolist() == [e.f1[0] for e in each]


def test_scores_at_the_threshold_count_in_any_precision():
    """0.7 of float32 is less than that of float64: it is no score of 0.7 at least, whoever asks."""
    scores = np.array([[0.7, 0.5]], np.float32)
    for threshold in (0.7, np.array([0.7, 0.7]), np.float64(0.7)):
        assert reached(scores, threshold).tolist() == [[False, False]]
    assert reached(scores, 0.5).tolist() == [[True, True]]


# ---- one class a patch


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("absent", [(), (1, 4)])
def test_one_class_a_patch_against_scikit_learn(seed, absent):
    rng = np.random.default_rng(seed)
    there = np.setdiff1d(np.arange(6), absent)
    true = rng.choice(there, 300)
    scores = rng.dirichlet(np.ones(6), 300) + 0.4 * np.eye(6)[true]
    scores /= scores.sum(1, keepdims=True)
    m = score(scores, np.eye(6, dtype=bool)[true], highest(scores), single=True)
    said = scores.argmax(1)
    np.testing.assert_array_equal(m.confusion, sk.confusion_matrix(true, said, labels=range(6)))
    p, r, f1, support = sk.precision_recall_fscore_support(true, said, labels=range(6), zero_division=0)
    for mine, theirs in ((m.precision, p), (m.recall, r), (m.f1, f1), (m.support, support)):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert m.micro()["f1"] == m.samples["f1"] == pytest.approx(sk.accuracy_score(true, said), abs=1e-12)
    assert m.map() == pytest.approx(sk.average_precision_score(np.eye(6)[true][:, there], scores[:, there]), abs=1e-12)


def test_of_equal_scores_the_first_class_is_taken():
    assert highest(np.array([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]])).tolist() == [
        [False, True, False],
        [True, False, False],
    ]
    assert highest(np.zeros((0, 3))).shape == (0, 3)


# ---- thresholds


def best_of_all(scores: np.ndarray, truth: np.ndarray) -> float:
    """The highest F1 of one class over every way to cut its scores in two, by scikit-learn."""
    cuts = [*np.unique(scores), 2.0]
    return max(sk.f1_score(truth, scores >= t, zero_division=0) for t in cuts)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("digits", [1, 2, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tuned_thresholds_are_the_best_of_all_cuts(seed, digits, dtype):
    rng = np.random.default_rng(seed)
    labels = (rng.random((60, 5)) < (0.5, 0.1, 0.02, 0.9, 0.3)).astype(np.uint8)
    scores = np.clip(0.3 * labels * rng.random(5) + rng.uniform(0, 0.8, labels.shape), 0, 1).round(digits).astype(dtype)
    found = tuned(scores, labels)
    m = multilabel(scores, labels, found)
    for c in range(5):
        assert m.f1[c] == best_of_all(scores[:, c], labels[:, c]), c
    assert (m.f1 >= multilabel(scores, labels, 0.5).f1).all() and ((found >= 0) & (found <= 1)).all()


def test_tuned_thresholds_lie_between_scores_and_leave_what_is_as_good():
    truth = np.array([1, 1, 0, 0])
    cases = {
        (0.9, 0.8, 0.4, 0.1): 0.5,  # already among the best
        (0.9, 0.8, 0.6, 0.1): pytest.approx(0.7),
        (0.4, 0.3, 0.2, 0.1): pytest.approx(0.25),
        (0.2, 0.2, 0.2, 0.2): pytest.approx(0.1),  # the only cut: all of them
        (0.0, 0.0, 0.0, 0.0): 0.0,
    }
    for scores, expected in cases.items():
        assert tuned(np.array([scores]).T, truth[:, None])[0] == expected, scores
    # F1 is 2/3 of the first alone and of all: the nearer of 0.85 and 0.05 to 0.5; the higher of 0.875 and 0.125
    assert tuned(np.array([[0.9, 0.8, 0.7, 0.1]]).T, np.array([[1, 0, 0, 1]]).T)[0] == pytest.approx(0.85)
    assert tuned(np.array([[1.0, 0.75, 0.75, 0.25]]).T, np.array([[1, 0, 0, 1]]).T)[0] == 0.875
    assert tuned(np.array([[0.9], [0.1]]), np.zeros((2, 1)))[0] == 0.5  # no support
    assert tuned(np.array([[0.9], [0.1]]), np.zeros((2, 1)), otherwise=0.3)[0] == 0.3
    assert tuned(np.zeros((0, 2)), np.zeros((0, 2))).tolist() == [0.5, 0.5]


def test_a_tuned_threshold_between_neighbours_among_floats_parts_them():
    low = np.float64(0.3)
    high = np.nextafter(low, 1)
    found = tuned(np.array([[high], [low]]), np.array([[1], [0]]))
    assert multilabel(np.array([[high], [low]]), np.array([[1], [0]]), found).f1[0] == 1.0
