"""Evaluation: scores of every patch once, and figures by what the run was taught, on a network that was not trained."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from jeoparda import checkpoint, evaluate, targets
from jeoparda.comm import Single
from jeoparda.config import as_dict
from jeoparda.errors import CheckpointError, RecipeError
from jeoparda.evaluate import EvaluateRecipe, infer
from jeoparda.feed import Feed, FeedRecipe, Plan
from jeoparda.models import ModelRecipe, build
from jeoparda.nomenclature import coarser
from jeoparda.order import Order
from jeoparda.store import Store

PLAIN = FeedRecipe(kind="plain", threads=1, ahead=1)
CPU = torch.device("cpu")


def make_run(folder: Path, store: Store, labels: str = "store", task: str = "multi-label", **state) -> Path:
    """A run folder whose one checkpoint holds a network as it was drawn."""
    info, (mean, std) = store.info, store.statistics()
    learnt = targets.build(info, labels, task)
    torch.manual_seed(0)
    r = ModelRecipe(name="resnet18", width=16)
    about = {
        "store": store.digest,
        "sensor": info.sensor,
        "groups": [asdict(g) | {"bands": list(g.bands)} for g in info.groups],
        "mean": mean.tolist(),
        "std": std.tolist(),
        "unit": info.unit,
        "model": as_dict(r),
        "threshold": 0.5,
    }
    model = build(r, info.layout, len(learnt.classes))
    about |= learnt.about() | state.pop("about", {})
    path = checkpoint.path_of(folder, 1)
    path.parent.mkdir(parents=True)
    checkpoint.save(path, {"model": model.state_dict(), "average": None, "about": about} | state)
    checkpoint.mark_best(path)
    return folder


def judged(run: Path, store: Path, split: str = "all", **more) -> dict:
    found = evaluate.run(
        EvaluateRecipe(run=run, store=store, split=split, batch=16, feed=PLAIN, samples=2, **more), Single()
    )
    assert json.loads((run / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    return found


class Means(nn.Module):
    """Logits that are known: the first bands' means over the image, times a weight."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight, self.classes = nn.Parameter(torch.tensor(3.0)), classes
        self.seen: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.is_autocast_enabled("cpu"))
        return (self.weight * x.mean((2, 3)))[:, torch.arange(self.classes) % x.shape[1]]


@pytest.mark.parametrize("task", ["multi-label", "single-label"])
def test_scores_and_loss_are_those_of_each_patch(tiny_store, task):
    """In any order of patches, against one patch at a time."""
    store = Store(tiny_store)
    learnt = targets.build(store.info, task="multi-label")
    learnt = targets.Targets(learnt.labels, task, learnt.classes, learnt.colors, learnt.matrix)
    labels = np.eye(43, dtype=np.uint8)[store.labels.argmax(1)] if learnt.single else store.labels
    chosen = np.array([5, 3, 40, 11, 2])
    feed = Feed(store, Plan(Order(5, 2, 0, shuffle=False), chosen, 0, 1), PLAIN, False, labels)
    model, beats = Means(43), []
    numbers, scores, loss = infer(model, feed, CPU, Single(), learnt, lambda: beats.append(1))
    assert numbers.tolist() == sorted(chosen) and scores.dtype == np.float32 and len(beats) == 3
    feed.restore({"epoch": 0, "step": 0})
    one = {int(n): (x, y) for b in feed for n, x, y in zip(b["number"], b["image"].clone(), b["labels"], strict=True)}
    logits = torch.cat([model(one[n][0][None]) for n in numbers]).double().detach()
    truth = torch.stack([one[n][1] for n in numbers]).double()
    if learnt.single:
        expected, costs = logits.softmax(1), nn.functional.cross_entropy(logits, truth)
    else:
        expected, costs = logits.sigmoid(), nn.functional.binary_cross_entropy_with_logits(logits, truth)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert loss == pytest.approx(costs.item(), rel=1e-5)


def test_only_the_network_runs_within_the_context(tiny_store):
    store, outside = Store(tiny_store), []
    learnt = targets.build(store.info)
    feed = Feed(store, Plan(Order(4, 2, 0, shuffle=False), np.arange(4), 0, 1), PLAIN, False, store.labels)
    model = Means(43)
    lower = torch.autocast("cpu", torch.bfloat16)
    _, scores, _ = infer(
        model, feed, CPU, Single(), learnt, lambda: outside.append(torch.is_autocast_enabled("cpu")), lower
    )
    assert model.seen == [True, True] and outside == [False, False] and scores.dtype == np.float32


def test_figures_are_scikit_learn_s_at_every_level(tiny_store, tmp_path, capsys):
    store = Store(tiny_store)
    own = np.linspace(0.3, 0.7, 43).tolist()
    run = make_run(tmp_path / "run", store, thresholds=own)
    found = judged(run, tiny_store, "test")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"samples F1 {found['samples_average']['f1']:.3f}" in out
    trained, numbers = evaluate.load(run), store.split("test")
    feed = Feed(store, Plan(Order(len(numbers), 16, 0, shuffle=False), numbers, 0, 1), PLAIN, False, store.labels)
    _, scores, _ = infer(trained.model, feed, CPU, Single(), targets.build(store.info))
    truth, said = store.labels[numbers] > 0, scores >= np.array(own)
    assert [c["threshold"] for c in found["classes"]] == own and found["thresholds"] == "per-class"
    for level, rows in (("3", found), ("2", found["levels"]["2"]), ("1", found["levels"]["1"])):
        up = np.eye(43) if level == "3" else coarser(store.info.classes, f"corine-{level}")[2]
        t, s = truth @ up > 0, said @ up > 0
        cells = [[c[k] for k in ("tn", "fp", "fn", "tp")] for c in rows["classes"]]
        np.testing.assert_array_equal(np.array(cells).reshape(-1, 2, 2), sk.multilabel_confusion_matrix(t, s))
        for average, mine in (("micro", rows["micro"]), ("samples", rows["samples_average"])):
            assert mine["f1"] == pytest.approx(sk.f1_score(t, s, average=average, zero_division=0))
    (parent,) = {c["parent"] for c in found["classes"] if c["name"] == "Pastures"}
    assert parent == "Pastures"
    assert {c["parent"] for c in found["levels"]["1"]["classes"]} == {None}
    assert {c["threshold"] for c in found["levels"]["2"]["classes"]} == {None}


def test_thresholds_are_not_judged_by_what_they_were_tuned_on(tiny_store, tmp_path):
    run = make_run(tmp_path / "run", Store(tiny_store), thresholds=[0.4] * 43)
    for split in ("val", "all"):
        with pytest.raises(RecipeError, match=rf"split = {split}: .* take split = test, or thresholds = fixed"):
            judged(run, tiny_store, split)
    assert judged(run, tiny_store, "val", thresholds="fixed")["thresholds"] == "fixed"
    elsewhere = make_run(tmp_path / "other", Store(tiny_store), thresholds=[0.4] * 43, about={"store": "of another"})
    with pytest.raises(RecipeError, match=r"split = all: .* thresholds = fixed"):  # which may hold the same patches
        judged(elsewhere, tiny_store, "all")
    assert judged(elsewhere, tiny_store, "test")["thresholds"] == "per-class"


@pytest.mark.parametrize("labels", ["bigearthnet-19", "corine-2", "corine-1"])
def test_a_run_of_coarser_classes_is_judged_by_them(tiny_store, tmp_path, labels):
    store = Store(tiny_store)
    found = judged(make_run(tmp_path / "run", store, labels), tiny_store)
    learnt = targets.build(store.info, labels)
    made = learnt.of(store.labels)
    assert [c["support"] for c in found["classes"]] == made.sum(0).tolist()
    assert found["patches"] + found["left_out"] == len(store) and found["patches"] == made.any(1).sum()
    assert list(found["levels"]) == (["1"] if labels == "corine-2" else [])
    assert {*found["samples"][0]["truth"]} <= {*learnt.classes}


def test_a_run_of_one_class_a_patch_has_a_confusion(tiny_store, tmp_path, monkeypatch, capsys):
    """The tiny store with each patch's first class alone."""
    store = Store(tiny_store)
    one = np.eye(43, dtype=np.uint8)[store.labels.argmax(1)]
    monkeypatch.setattr(evaluate, "Store", lambda folder: setattr(store, "labels", one) or store)
    found = judged(make_run(tmp_path / "run", store, task="single-label"), tiny_store)
    confusion = np.array(found["confusion"])
    assert confusion.sum(1).tolist() == one.sum(0).tolist()
    assert confusion.sum(0).tolist() == [c["predicted"] for c in found["classes"]]
    assert found["micro"]["f1"] == pytest.approx(np.trace(confusion) / len(store))
    assert f"accuracy {found['micro']['f1']:.3f}" in capsys.readouterr().out
    assert np.array(found["levels"]["1"]["confusion"]).sum() == len(store)


def test_an_old_checkpoint_is_judged_as_it_was(tiny_store, tmp_path):
    store = Store(tiny_store)
    run = make_run(tmp_path / "run", store)
    state = checkpoint.load(checkpoint.path_of(run, 1))
    for key in ("labels", "task"):
        del state["about"][key]
    checkpoint.save(checkpoint.path_of(run, 1), state)
    found = judged(run, tiny_store)
    assert (found["task"], found["labels"], found["thresholds"]) == ("multi-label", "store", "fixed")
    assert [c["support"] for c in found["classes"]] == store.labels.sum(0).tolist()


def test_a_store_whose_classes_do_not_make_the_run_s_is_refused(tiny_store, tmp_path, monkeypatch):
    store = Store(tiny_store)
    run = make_run(tmp_path / "run", store, "corine-2")
    wheat = tuple(f"wheat {i}" for i in range(43))
    info = type(store.info)(**(vars(store.info) | {"classes": wheat}))
    monkeypatch.setattr(evaluate, "Store", lambda folder: setattr(store, "info", info) or store)
    with pytest.raises(CheckpointError, match=r"best\.pt: learnt Urban .* \(labels = corine-2\), .* do not make"):
        judged(run, tiny_store)
