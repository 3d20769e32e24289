"""Targets: what is made of a store's labels, what is judged, and that a checkpoint brings it back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from jeoparda import targets
from jeoparda.errors import RecipeError
from jeoparda.nomenclature import CLC_BY_NAME, LEVEL_1, LEVEL_2, nomenclature
from jeoparda.store.format import Contents, Layout

BEN43, BEN19 = nomenclature("bigearthnet-43"), nomenclature("bigearthnet-19")
BEN19_OF = (BEN19.classes, BEN19.colors)


def contents(classes=BEN43.classes, colors=BEN43.colors, target="labels") -> Contents:
    return Contents("sentinel-2", "reflectance x 10000", (), Layout(()), "", tuple(classes), tuple(colors), target)


def drawn(patches: int = 80, classes: int = 43, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((patches, classes)) < 0.06).astype(np.uint8)


@pytest.mark.parametrize(("labels", "names", "digits"), [("corine-2", LEVEL_2, 10), ("corine-1", LEVEL_1, 100)])
def test_levels_of_each_patch_are_those_of_its_classes(labels, names, digits):
    learnt, store = targets.build(contents(), labels), drawn()
    made = learnt.of(store)
    assert made.dtype == np.uint8 and learnt.classes == tuple(names.values()) and learnt.task == "multi-label"
    for row, has in zip(made, store, strict=True):
        codes = {CLC_BY_NAME[BEN43.classes[i]].code // digits for i in np.flatnonzero(has)}
        assert {learnt.classes[i] for i in np.flatnonzero(row)} == {names[c] for c in codes}


def test_the_19_classes_of_each_patch_are_those_that_ingest_would_give_it():
    learnt, store = targets.build(contents(), "bigearthnet-19"), drawn()
    for row, has in zip(learnt.of(store), store, strict=True):
        assert np.flatnonzero(row).tolist() == BEN19.encode([BEN43.classes[i] for i in np.flatnonzero(has)])


def test_patches_that_lose_all_labels_are_left_out_and_those_without_any_stay():
    store = np.zeros((4, 43), np.uint8)
    store[0, [BEN43.classes.index("Airports"), BEN43.classes.index("Dump sites")]] = 1  # dropped by the 19
    store[1, BEN43.classes.index("Pastures")] = 1
    store[2, [BEN43.classes.index("Airports"), BEN43.classes.index("Pastures")]] = 1
    assert targets.build(contents(), "bigearthnet-19").labelled(store).tolist() == [False, True, True, True]
    assert (
        targets.build(contents()).labelled(store).all() and targets.build(contents(), "corine-1").labelled(store).all()
    )


def test_the_store_s_own_classes_are_left_as_they_are():
    learnt, store = targets.build(contents()), drawn()
    np.testing.assert_array_equal(learnt.of(store), store)
    assert (learnt.classes, learnt.colors, learnt.level) == (BEN43.classes, BEN43.colors, 3)


def test_auto_asks_the_store():
    assert targets.build(contents(target="label")).task == "single-label"
    assert targets.build(contents(target="label"), task="multi-label").task == "multi-label"
    assert {targets.build(contents(target=t)).task for t in ("labels", "mask", "series")} == {"multi-label"}


def test_single_label_wants_one_class_a_patch():
    learnt = targets.build(contents(), task="single-label")
    one = np.eye(43, dtype=np.uint8)
    np.testing.assert_array_equal(learnt.of(one), one)
    two, none = one.copy(), one.copy()
    two[7, 3], none[5] = 1, 0
    with pytest.raises(RecipeError, match=r"single-label: 1 of 43 patches .* patch 7 has 2; take task = multi-label"):
        learnt.of(two)
    with pytest.raises(RecipeError, match="patch 5 has 0"):
        learnt.of(none)
    # two classes of one coarser class are one; what the 19 drop is left out, and no fault
    assert (
        targets.build(contents(), "corine-1", "single-label").of(np.eye(43, dtype=np.uint8)[[0]] | one[[1]]).sum() == 1
    )
    dropped = one[[BEN43.classes.index("Airports")]]
    assert targets.build(contents(), "bigearthnet-19", "single-label").of(dropped).sum() == 0
    with pytest.raises(RecipeError, match="there is one class only, water"):
        targets.build(contents(("water",), ((0, 0, 255),), "label"))


def test_classes_that_are_not_corine_make_no_levels():
    with pytest.raises(RecipeError, match=r"labels = corine-2: .* the store has 'wheat'"):
        targets.build(contents(("wheat", "maize"), ((1, 1, 1), (2, 2, 2))), "corine-2")
    learnt = targets.build(contents(("wheat", "maize"), ((1, 1, 1), (2, 2, 2))))
    assert learnt.level == 0 and learnt.levels(drawn(9, 2) * 0.9, drawn(9, 2), 0.5) == {}
    assert targets.build(contents(), "bigearthnet-19").level == targets.build(contents(*BEN19_OF)).level == 0


@pytest.mark.parametrize("labels", ["store", "bigearthnet-19", "corine-2", "corine-1"])
@pytest.mark.parametrize("task", ["multi-label", "single-label"])
def test_a_checkpoint_brings_them_back(tmp_path, labels, task):
    learnt = targets.build(contents(), labels, task)
    torch.save({"about": learnt.about()}, tmp_path / "c.pt")
    about = torch.load(tmp_path / "c.pt", weights_only=True)["about"]
    again = targets.restored(json.loads(json.dumps(about)), contents())
    assert again.about() == learnt.about()
    np.testing.assert_array_equal(again.matrix, learnt.matrix)


def test_a_run_is_judged_by_a_store_that_holds_what_it_made_and_not_by_another():
    about = targets.build(contents(), "bigearthnet-19").about()
    again = targets.restored(about, contents(*BEN19_OF))
    assert again.classes == BEN19.classes and len(again.matrix) == 19
    with pytest.raises(RecipeError, match="the store has 'Urban fabric'"):
        targets.restored(targets.build(contents(), "corine-2").about(), contents(*BEN19_OF))


def test_an_old_checkpoint_is_multi_label_of_the_store_s_classes():
    again = targets.restored({"classes": list(BEN43.classes)}, contents(target="label"))
    assert (again.labels, again.task, again.classes) == ("store", "multi-label", BEN43.classes)


def test_probabilities_are_sigmoid_or_softmax():
    logits = torch.randn(5, 43, dtype=torch.float64)
    one = targets.build(contents(), task="single-label").probabilities(logits)
    torch.testing.assert_close(one, torch.softmax(logits, 1))
    torch.testing.assert_close(targets.build(contents()).probabilities(logits), 1 / (1 + (-logits).exp()))
    torch.testing.assert_close(targets.probabilities(logits, "single-label"), one)


# ---- levels of a report


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("level", [2, 1])
def test_a_coarser_class_is_there_if_any_of_its_members_is(own, level):
    """Against scikit-learn, with truth and prediction put together class by class."""
    learnt, truth = targets.build(contents()), drawn(120)
    rng = np.random.default_rng(3)
    scores = np.clip(0.5 * truth + rng.uniform(0, 0.55, truth.shape), 0, 1)
    threshold = rng.uniform(0.3, 0.7, 43) if own else 0.5
    up, found = learnt.levels(scores, truth, threshold)[level]
    digits = {2: 10, 1: 100}[level]
    said, names = scores >= threshold, {2: LEVEL_2, 1: LEVEL_1}[level]
    code_of = np.array([CLC_BY_NAME[n].code // digits for n in BEN43.classes])
    for c, name in enumerate(up.classes):
        members = code_of == next(k for k, n in names.items() if n == name)
        t, s = truth[:, members].any(1), said[:, members].any(1)
        mine = {n: v[c] for n, v in found.counts().items()}
        assert [mine["tn"], mine["fp"], mine["fn"], mine["tp"]] == sk.confusion_matrix(
            t, s, labels=[False, True]
        ).ravel().tolist()
        assert found.f1[c] == pytest.approx(sk.f1_score(t, s, zero_division=0))
        if t.any():
            assert found.average_precision[c] == pytest.approx(sk.average_precision_score(t, scores[:, members].max(1)))


def test_level_1_follows_from_level_2_and_a_network_of_level_2_has_it_alone():
    learnt, store = targets.build(contents(), "corine-2"), drawn(120)
    truth = learnt.of(store)
    scores = np.random.default_rng(4).random(truth.shape)
    found = learnt.levels(scores, truth, 0.8)
    assert list(found) == [1] and list(targets.build(contents()).levels(store * 1.0, store, 0.5)) == [2, 1]
    np.testing.assert_array_equal(found[1][1].support, targets.build(contents(), "corine-1").of(store).sum(0))
    one = targets.build(contents(), "corine-1")
    assert one.levels(one.of(store) * 1.0, one.of(store), 0.5) == {}


def test_single_label_levels_have_a_confusion_of_their_own():
    learnt = targets.build(replace(contents(), target="label"))
    rng = np.random.default_rng(5)
    truth = np.eye(43, dtype=np.uint8)[rng.integers(0, 43, 200)]
    scores = rng.dirichlet(np.ones(43) / 2, 200) + 0.3 * truth
    m = learnt.score(scores, truth, 0.5)
    for up, found in learnt.levels(scores, truth, 0.5).values():
        np.testing.assert_array_equal(found.confusion, up.matrix.T.astype(int) @ m.confusion @ up.matrix)
        assert found.confusion.sum() == 200 and found.micro()["f1"] >= m.micro()["f1"]
