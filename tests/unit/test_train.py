"""Training in one process: it learns, it stops and goes on exactly, and it refuses what cannot be meant."""

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jeoparda import checkpoint, evaluate, journal, losses, train
from jeoparda.comm import Single
from jeoparda.errors import CheckpointError, JeopardaError, RecipeError, Stopped, StoreError
from jeoparda.evaluate import EvaluateRecipe
from jeoparda.feed import Feed, FeedRecipe, Plan
from jeoparda.feed.augment import AugmentRecipe
from jeoparda.feed.plain import PlainTransform
from jeoparda.feed.seen import prove
from jeoparda.ingest import IngestRecipe, SplitRecipe
from jeoparda.ingest import run as ingest
from jeoparda.ingest.bigearthnet import BigEarthNetRecipe
from jeoparda.losses import Loss, LossRecipe
from jeoparda.models import ModelRecipe, build
from jeoparda.optimizers import OptimizerRecipe
from jeoparda.order import Order
from jeoparda.ranks import utilisation
from jeoparda.schedule import ScheduleRecipe, factor
from jeoparda.signals import StopRequest
from jeoparda.store import Store
from jeoparda.targets import Kind
from jeoparda.train import CheckpointRecipe, OversampleRecipe, TrainRecipe
from jeoparda.train.prepare import shuffled_labels
from tests.archive import make_archive

pytestmark = pytest.mark.usefixtures("keep_signals")


def recipe(store: Path, run: Path, **more) -> TrainRecipe:
    small = {
        "model": ModelRecipe(width=16, dropout=0.2),
        "epochs": 2,
        "batch": 5,
        "feed": FeedRecipe(kind="plain"),
        "optimizer": OptimizerRecipe(kind="adamw", lr=3e-3),
        "ema": 0.9,
    }
    return TrainRecipe(store=store, run=run, **small | more)


def epochs(run: Path) -> list[dict]:
    """The epochs' figures without times."""
    found = [e for e in journal.read(run / "journal.jsonl") if e["event"] == "epoch"]
    return [{k: e[k] for k in ("epoch", "step", "loss", "lr", "val")} for e in found]


@pytest.fixture(scope="module")
def undisturbed(tiny_store, tmp_path_factory) -> Path:
    before = signal.getsignal(signal.SIGTERM)
    run = train.run(recipe(tiny_store, tmp_path_factory.mktemp("train") / "run"), Single())
    signal.signal(signal.SIGTERM, before)
    return run


def act_at(monkeypatch, calls: tuple[int, ...], act: Callable[[], None]) -> None:
    """Act while this process computes the given losses of training (counted from 1, in one epoch or over several;
    those of validation are not counted)."""
    seen, original = [0], losses.build

    def build(r: LossRecipe, weight: torch.Tensor | None, task: Kind) -> Loss:
        loss = original(r, weight, task)

        def counting(logits, labels):
            seen[0] += 1
            if seen[0] in calls:
                act()
            return loss(logits, labels)

        return counting

    monkeypatch.setattr(losses, "build", build)


def stop_at(monkeypatch, *calls: int) -> None:
    """Send this process a SIGTERM at these losses."""
    act_at(monkeypatch, calls, lambda: os.kill(os.getpid(), signal.SIGTERM))


def crash_at(monkeypatch, *calls: int) -> None:
    """Break off at these losses, with nothing saved."""

    def crash() -> None:
        raise KeyboardInterrupt

    act_at(monkeypatch, calls, crash)


def test_a_run_leaves_what_is_promised(undisturbed, tiny_store):
    store = Store(tiny_store)
    events = journal.read(undisturbed / "journal.jsonl")
    assert [e["event"] for e in events] == ["start", "epoch", "epoch", "stop"]
    start = events[0]
    assert start["train_patches"] == len(store.split("train")) and start["val_patches"] == len(store.split("val"))
    assert (start["ranks"], start["backend"], start["feed"], start["model"]) == (1, "single", "plain", "resnet18")
    assert start["classes"] == list(store.info.classes) and start["bands"] == list(store.info.bands)
    assert start["recipe"]["batch"] == 5 and start["store_digest"] == store.digest
    for e in events[1:3]:
        assert set(e["val"]) == {"loss", "micro_f1", "macro_f1", "samples_f1", "micro_recall", "macro_recall", "map"}
        assert e["images_per_s"] > 0 and len(e["images_per_s_per_rank"]) == len(e["wait_s"]) == 1
        assert sum(e["split_s"].values()) <= e["seconds"] * 1.01
        assert 0 < e["utilisation"] <= 1 and e["utilisation_per_rank"] == [e["utilisation"]]
    assert (undisturbed / "recipe.yaml").read_text().startswith("store:")
    assert {p.name for p in (undisturbed / "checkpoints").glob("*.pt")} >= {"best.pt"}


def test_best_is_the_epoch_of_the_best_f1(undisturbed):
    f1 = [e["val"]["micro_f1"] for e in epochs(undisturbed)]
    best = checkpoint.load(undisturbed / "checkpoints" / "best.pt")
    assert best["loop"]["best_f1"] == max(f1) and best["loop"]["epoch"] == f1.index(max(f1)) + 1


@pytest.mark.parametrize("at", [1, 5, 7])
def test_stopped_and_started_again_it_ends_exactly_as_undisturbed(
    undisturbed, tiny_store, tmp_path, monkeypatch, apart, at
):
    r = recipe(tiny_store, tmp_path / "run")
    with monkeypatch.context() as m:
        stop_at(m, at)
        with pytest.raises(Stopped, match=r"stopped by SIGTERM in epoch \d, step \d; saved"):
            train.run(r, Single())
    assert epochs(r.run) != epochs(undisturbed)
    torch.manual_seed(12345)  # what another process would find
    train.run(r, Single())
    assert apart(r.run, undisturbed) == 0
    assert epochs(r.run) == epochs(undisturbed)
    states = [checkpoint.newest(run)[1]["optimizer"]["state"] for run in (r.run, undisturbed)]
    assert all(torch.equal(states[0][i]["exp_avg_sq"], states[1][i]["exp_avg_sq"]) for i in states[0])


def test_stopped_twice_in_one_epoch(undisturbed, tiny_store, tmp_path, monkeypatch, apart):
    r = recipe(tiny_store, tmp_path / "run")
    for at in (6, 1):
        with monkeypatch.context() as m:
            stop_at(m, at)
            with pytest.raises(Stopped):
                train.run(r, Single())
    train.run(r, Single())
    assert apart(r.run, undisturbed) == 0 and epochs(r.run) == epochs(undisturbed)


def test_a_crash_between_two_checkpoints_repeats_only_what_is_lost(
    undisturbed, tiny_store, tmp_path, monkeypatch, apart
):
    r = recipe(tiny_store, tmp_path / "run", checkpoint=CheckpointRecipe(every_steps=2))
    with monkeypatch.context() as m:
        crash_at(m, 4)
        with pytest.raises(KeyboardInterrupt):
            train.run(r, Single())
    assert checkpoint.newest(r.run)[0].name == "00000002.pt"
    train.run(r, Single())
    assert apart(r.run, undisturbed) == 0
    assert [e["event"] for e in journal.read(r.run / "journal.jsonl")] == ["start", "resume", "epoch", "epoch", "stop"]
    for e, whole in zip(epochs(r.run), epochs(undisturbed), strict=True):
        assert e["val"] == whole["val"] and e["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_a_crash_before_the_best_is_marked_does_not_lose_it(undisturbed, tiny_store, tmp_path, monkeypatch):
    """The last epoch may be the best: a run that is started again must not pass over it."""
    best = epochs(undisturbed).index(max(epochs(undisturbed), key=lambda e: e["val"]["micro_f1"])) + 1
    r = recipe(tiny_store, tmp_path / "run")
    original = checkpoint.mark_best

    def crash(path):
        if path == checkpoint.path_of(r.run, best * epochs(undisturbed)[0]["step"]):
            raise KeyboardInterrupt
        original(path)

    with monkeypatch.context() as m:
        m.setattr(checkpoint, "mark_best", crash)
        with pytest.raises(KeyboardInterrupt):
            train.run(r, Single())
    train.run(r, Single())
    found = checkpoint.load(r.run / "checkpoints" / "best.pt")
    assert found["loop"]["epoch"] == best


def test_a_damaged_newest_checkpoint_is_passed_over(undisturbed, tiny_store, tmp_path, capsys, apart):
    r = recipe(tiny_store, tmp_path / "run")
    train.run(r, Single())
    last, _ = checkpoint.newest(r.run)
    last.write_bytes(last.read_bytes()[:-7])
    train.run(r, Single())
    assert "the one before" in capsys.readouterr().err
    assert apart(r.run, undisturbed) == 0 and epochs(r.run) == epochs(undisturbed)


def test_a_finished_run_started_again_trains_no_more(undisturbed, tiny_store, apart, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    train.run(recipe(tiny_store, copy), Single())
    assert apart(copy, undisturbed) == 0 and epochs(copy) == epochs(undisturbed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": 6}, "batch: was 5, now 6"),
        ({"optimizer": OptimizerRecipe(kind="adamw", lr=0.1)}, "optimizer.lr: was 0.003, now 0.1"),
        ({"seed": 1}, "seed: was 0, now 1"),
        ({"epochs": 4}, "epochs: was 2, now 4"),
        ({"model": ModelRecipe(width=32, dropout=0.2)}, "model.width: was 16, now 32"),
        (
            {"feed": FeedRecipe(kind="plain", augment=AugmentRecipe(flips=False))},
            "feed.augment.flips: was True, now False",
        ),
        ({"feed": FeedRecipe(kind="plain", block=4)}, "feed.block: was 1, now 4"),
        ({"feed": FeedRecipe(kind="synthetic")}, "feed.synthetic: was False, now True"),
        ({"feed": FeedRecipe(kind="plain", bands=("10m", "B05"))}, "feed.bands: was [], now ['10m', 'B05']"),
        ({"control": "shuffled-labels"}, "control: was none, now shuffled-labels"),
    ],
)
def test_a_folder_of_another_run_is_refused(undisturbed, tiny_store, change, told):
    before = (undisturbed / "journal.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="holds another run; give another `run` folder") as caught:
        train.run(recipe(tiny_store, undisturbed, **change), Single())
    assert str(caught.value).endswith(f"Changed: {told}")
    assert (undisturbed / "journal.jsonl").read_bytes() == before


def test_another_store_is_refused(undisturbed, tiny_archive, tmp_path):
    split = SplitRecipe(block_m=1200, val=0.25, test=0.3)
    ingest(IngestRecipe(archive=tiny_archive, store=tmp_path / "s", split=split, workers=1), lambda _: None)
    with pytest.raises(CheckpointError, match="Changed: the store's content"):
        train.run(recipe(tmp_path / "s", undisturbed), Single())


def test_where_and_how_fast_may_change(undisturbed, tiny_store, tmp_path):
    moved = shutil.copytree(undisturbed, tmp_path / "elsewhere", symlinks=True)
    more = {"feed": FeedRecipe(kind="plain", threads=1, ahead=4), "checkpoint": CheckpointRecipe(keep=5)}
    train.run(recipe(tiny_store, moved, **more), Single())


def test_a_loss_that_is_not_finite_stops_in_words(tiny_store, tmp_path):
    r = recipe(tiny_store, tmp_path / "run", optimizer=OptimizerRecipe(kind="sgd", lr=1e30), epochs=1)
    with pytest.raises(
        JeopardaError, match=r"the loss is not finite in epoch 1 by step \d; take a smaller optimizer.lr"
    ):
        train.run(r, Single())
    assert checkpoint.newest(r.run) is None  # nothing broken is kept


def test_what_cannot_work_is_refused_before_work(tiny_store, tmp_path, monkeypatch):
    class Two(Single):
        size = 2

    with pytest.raises(RecipeError, match="batch = 1 over 2 ranks leaves some without a patch"):
        train.run(recipe(tiny_store, tmp_path / "run", batch=1), Two())
    with pytest.raises(StoreError, match="no store"):
        train.run(recipe(tmp_path / "none", tmp_path / "run"), Single())
    mixed = FeedRecipe(
        kind="plain", augment=AugmentRecipe(mixup=0.2)
    )  # of three or four patches: two pairs for three ranks
    monkeypatch.setattr(Two, "size", 3)
    with pytest.raises(RecipeError, match="batch = 4 over 3 ranks leaves some without a patch"):
        train.run(recipe(tiny_store, tmp_path / "run", batch=4, feed=mixed), Two())
    with pytest.raises(RecipeError, match=r"feed\.kind = raw: a network takes images"):
        train.run(recipe(tiny_store, tmp_path / "run", feed=FeedRecipe(kind="raw")), Single())
    assert not (tmp_path / "run").exists()


def test_shuffled_labels_are_the_same_labels_on_other_patches(tiny_store):
    store = Store(tiny_store)
    numbers = store.split("train")
    dealt = shuffled_labels(store.labels, numbers, 0)
    assert dealt[numbers].sum(0).tolist() == store.labels[numbers].sum(0).tolist()
    assert sorted(map(bytes, dealt[numbers])) == sorted(map(bytes, store.labels[numbers]))  # whole rows, not cells
    assert (dealt[numbers] != store.labels[numbers]).any(1).mean() > 0.4
    rest = np.setdiff1d(store.split("all"), numbers)
    np.testing.assert_array_equal(dealt[rest], store.labels[rest])


def test_it_learns_and_not_from_shuffled_labels(tmp_path):
    store = tmp_path / "store"
    split = SplitRecipe(block_m=1200, val=0.2, test=0)
    archive = make_archive(tmp_path / "archive", 140)
    ingest(IngestRecipe(archive=archive, store=store, split=split, workers=1), lambda _: None)
    last = {}
    for control in ("none", "shuffled-labels"):
        r = recipe(store, tmp_path / control, control=control, epochs=4, batch=8, model=ModelRecipe(width=16))
        train.run(r, Single())
        assert epochs(r.run)[-1]["loss"] < epochs(r.run)[0]["loss"]
        last[control] = epochs(r.run)[-1]["val"]["micro_f1"]
    assert last["none"] > 0.8 and last["shuffled-labels"] < 0.5, last  # over seeds: 0.92 to 0.99, and 0 to 0.3


def test_the_learning_rate_follows_the_schedule(undisturbed):
    found = epochs(undisturbed)
    last = found[-1]["step"]
    for e in found:
        assert e["lr"] == pytest.approx(3e-3 * factor(ScheduleRecipe(), e["step"] - 1, last))


def test_one_step_is_the_reference_step(tiny_store, tmp_path):
    """One step of SGD on the first batch, written out by hand in float64."""
    sgd = OptimizerRecipe(kind="sgd", lr=0.1, weight_decay=0.01)
    more = {"optimizer": sgd, "schedule": ScheduleRecipe(kind="constant", warmup=0), "model": ModelRecipe(width=16)}
    r = recipe(tiny_store, tmp_path / "run", epochs=1, batch=1000, precision="float64", **more)
    train.run(r, Single())
    store = Store(tiny_store)
    numbers = store.split("train")
    feed = Feed(
        store, Plan(Order(len(numbers), 1000, 0), numbers, 0, 1), r.feed, True, store.labels, store.statistics()
    )
    (batch,) = list(feed)
    torch.manual_seed(0)
    model = build(r.model, store.info.layout, 43).double().train()
    start = {k: v.clone() for k, v in model.named_parameters()}
    p = model(batch["image"].double()).sigmoid()
    y = batch["labels"].double()
    loss = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    loss.backward()
    found = checkpoint.newest(r.run)[1]["model"]
    for name, q in model.named_parameters():
        decay = 0.01 if q.ndim > 1 else 0.0  # not on norms and biases
        torch.testing.assert_close(
            found[name], start[name] - 0.1 * (q.grad + decay * start[name]), atol=1e-9, rtol=1e-9
        )
    assert epochs(r.run)[0]["loss"] == pytest.approx(loss.item(), abs=1e-10)


# ---- the feed's part


def test_the_journal_of_patches_seen_proves_each_epoch(undisturbed, tiny_store, tmp_path, monkeypatch, apart):
    """A run that crashed and was stopped: steps that were done twice count once, and weights are as without journal."""
    how = CheckpointRecipe(every_steps=2)
    r = recipe(tiny_store, tmp_path / "run", feed=FeedRecipe(kind="plain", journal=True), checkpoint=how)
    with monkeypatch.context() as m:
        crash_at(m, 4)
        with pytest.raises(KeyboardInterrupt):
            train.run(r, Single())
    (found,) = prove(r.run, Store(tiny_store))
    assert (found.steps, found.starts, found.sound, found.exact) == (3, (1,), True, False)
    with monkeypatch.context() as m:
        stop_at(m, 4)
        with pytest.raises(Stopped):
            train.run(r, Single())
    train.run(r, Single())
    found = prove(r.run, Store(tiny_store))
    assert [e.exact for e in found] == [True, True]
    assert found[0].starts == (1, 2) and found[0].seen == len(Store(tiny_store).split("train"))
    assert apart(r.run, undisturbed) == 0
    steps = [line.split('"step":')[1][0] for line in (r.run / "seen" / "rank-000.jsonl").read_text().splitlines()]
    assert steps[:4] == ["0", "1", "2", "2"]  # the step after the checkpoint is there twice


def test_without_being_asked_no_journal_of_patches_is_written(undisturbed):
    assert not (undisturbed / "seen").exists()


def test_utilisation_is_computing_over_running_time():
    assert utilisation(10.0, 4.0, 1.0) == pytest.approx(1 - 3 / 9)  # the first wait is in neither
    assert utilisation(10.0, 1.0, 1.0) == 1
    assert np.isnan(utilisation(1.0, 0.0, 1.0))


def test_a_slow_feed_shows_in_wait_and_utilisation(tiny_store, tmp_path, monkeypatch):
    original, late_s = PlainTransform.__call__, 0.25

    def slow(self, fields, draws):
        time.sleep(late_s)
        return original(self, fields, draws)

    monkeypatch.setattr(PlainTransform, "__call__", slow)
    r = recipe(tiny_store, tmp_path / "run", epochs=1)
    train.run(r, Single())
    (e,) = [e for e in journal.read(r.run / "journal.jsonl") if e["event"] == "epoch"]
    steps = e["step"]
    assert e["wait_s"][0] == pytest.approx(steps * late_s, rel=0.5) and e["wait_s"][0] >= steps * late_s
    waited = (steps - 1) * late_s  # all but the first, at least
    running = e["seconds"] - e["split_s"]["checkpoint"] - late_s
    assert e["utilisation"] <= 1 - waited / running + 0.02
    assert e["utilisation"] >= e["split_s"]["compute"] / e["seconds"]


def test_trained_on_some_bands_with_every_augmentation(tiny_store, tmp_path):
    augment = AugmentRecipe(crop_px=96, mixup=0.3, drop_bands=0.1, jitter=0.05)
    how = FeedRecipe(kind="plain", bands=("10m", "B11"), block=4, augment=augment, journal=True)
    r = recipe(tiny_store, tmp_path / "run", feed=how)
    train.run(r, Single())
    assert all(e.exact for e in prove(r.run, Store(tiny_store)))
    about = checkpoint.newest(r.run)[1]["about"]
    assert [g["bands"] for g in about["groups"]] == [["B02", "B03", "B04", "B08"], ["B11"]]
    mean, std = Store(tiny_store).statistics()
    kept = [Store(tiny_store).info.bands.index(b) for g in about["groups"] for b in g["bands"]]
    assert about["mean"] == mean[kept].tolist() and about["std"] == std[kept].tolist()
    feed = FeedRecipe(kind="plain")
    found = evaluate.run(EvaluateRecipe(run=r.run, store=tiny_store, split="val", batch=3, feed=feed), Single())
    best = max(e["val"]["micro_f1"] for e in epochs(r.run))
    assert found["micro"]["f1"] == best


def test_a_patch_that_cannot_be_read_says_how_to_go_on(undisturbed, tiny_store, tmp_path, apart):
    """Without a checkpoint before it, and with one."""
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    unmeasured = FeedRecipe(kind="plain", threads=1, ahead=1)  # else it reads on ahead, to see how fast that goes
    r = recipe(store, tmp_path / "run", feed=unmeasured)
    opened = Store(store)
    last = opened.split("train")[Order(len(opened.split("train")), 5, 0).global_batch(0, 4)[0]]
    path = opened.paths[opened.shard_of[last]]
    sound = path.read_bytes()
    with open(path, "r+b") as f:
        f.seek(opened.offset_of[last] + 77)
        f.write(b"\x13\x37")
    told = f"{path.name}: patch {last} .*; then start the run again: it "
    with pytest.raises(StoreError, match=told + "goes on from its beginning$"):
        train.run(r, Single())
    how = CheckpointRecipe(every_steps=2)
    with pytest.raises(StoreError, match=told + "goes on from step 4, its last checkpoint$"):
        train.run(dataclasses.replace(r, checkpoint=how), Single())
    path.write_bytes(sound)
    train.run(r, Single())
    assert apart(r.run, undisturbed) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_set_a_flag_and_nothing_more(number):
    stop = StopRequest()
    assert stop.asked == ""
    os.kill(os.getpid(), number)
    assert stop.asked == number.name


# ---- evaluation


def test_evaluation_repeats_the_validation_of_the_best_epoch(undisturbed, tiny_store):
    best = max(epochs(undisturbed), key=lambda e: e["val"]["micro_f1"])["val"]
    feed = FeedRecipe(kind="plain")
    found = evaluate.run(EvaluateRecipe(run=undisturbed, store=tiny_store, split="val", batch=3, feed=feed), Single())
    assert found["micro"]["f1"] == best["micro_f1"] and found["macro"]["recall"] == best["macro_recall"]
    assert found["map"] == pytest.approx(best["map"], abs=1e-6)
    assert found["loss"] == pytest.approx(best["loss"], rel=1e-5)
    assert found["patches"] == len(Store(tiny_store).split("val"))
    assert sum(c["support"] for c in found["classes"]) == Store(tiny_store).labels[Store(tiny_store).split("val")].sum()


@pytest.mark.parametrize(
    ("feed", "told"),
    [
        ({"kind": "raw"}, "feed.kind = raw: a network takes images"),
        ({"bands": ("10m",)}, "the run's bands are taken"),
        ({"stage": "shm"}, "are of training"),
        ({"journal": True}, "are of training"),
    ],
)
def test_evaluation_refuses_what_it_would_not_do(undisturbed, tiny_store, feed, told):
    with pytest.raises(RecipeError, match=told):
        evaluate.run(EvaluateRecipe(run=undisturbed, store=tiny_store, feed=FeedRecipe(**feed)), Single())


def test_evaluation_refuses_pixels_of_another_kind(undisturbed, tiny_store, monkeypatch):
    load = evaluate.load

    def of_smaller_patches(*words):
        trained = load(*words)
        trained.about["groups"][0]["size_px"] = 60
        return trained

    monkeypatch.setattr(evaluate, "load", of_smaller_patches)
    told = (
        r"its pixels are {'B02': '60 px of 10.0 m, uint16', .*}, the store .* has {'B02': '120 px of 10.0 m, uint16', "
    )
    with pytest.raises(CheckpointError, match=told):
        evaluate.run(EvaluateRecipe(run=undisturbed, store=tiny_store), Single())


def test_evaluation_refuses_a_store_that_does_not_fit(undisturbed, tiny_archive, tmp_path):
    ingest(
        IngestRecipe(
            archive=tiny_archive,
            store=tmp_path / "s",
            bigearthnet=BigEarthNetRecipe(nomenclature="bigearthnet-19"),
            workers=1,
        ),
        lambda _: None,
    )
    with pytest.raises(CheckpointError, match="its classes are"):
        evaluate.run(EvaluateRecipe(run=undisturbed, store=tmp_path / "s", split="all"), Single())
    with pytest.raises(CheckpointError, match=r"best\.pt: no such checkpoint"):
        evaluate.run(EvaluateRecipe(run=tmp_path, store=tmp_path / "s"), Single())


def test_validation_and_evaluation_look_at_the_average(tiny_store, tmp_path):
    r = recipe(tiny_store, tmp_path / "run", epochs=1, checkpoint=CheckpointRecipe(every_steps=1, keep=99))
    train.run(r, Single())
    states = [torch.load(p, weights_only=True) for p in sorted((r.run / "checkpoints").glob("[0-9]*.pt"))]
    assert len(states) > 3
    average = states[0]["model"]  # the first step's weights begin it
    for state in states[1:]:
        new = state["model"]
        average = {k: 0.9 * average[k] + 0.1 * x if x.is_floating_point() else x for k, x in new.items()}
    used = evaluate.load(r.run, "last").model.state_dict()
    for name, w in used.items():
        if w.is_floating_point():
            torch.testing.assert_close(w, average[name])
    assert not torch.equal(used["fc.weight"], states[-1]["model"]["fc.weight"])
    again = EvaluateRecipe(run=r.run, store=tiny_store, split="val", checkpoint="last", feed=FeedRecipe(kind="plain"))
    assert evaluate.run(again, Single())["loss"] == pytest.approx(epochs(r.run)[0]["val"]["loss"], rel=1e-5)


def test_patience_ends_a_run_that_gets_no_better_and_it_stays_ended(tiny_store, tmp_path, capsys):
    still_weights = OptimizerRecipe(kind="sgd", lr=1e-30)
    more = {"epochs": 9, "patience": 2, "norm": "frozen", "ema": 0.0, "optimizer": still_weights}
    r = recipe(tiny_store, tmp_path / "run", **more)
    train.run(r, Single())
    events = journal.read(r.run / "journal.jsonl")
    assert [e["event"] for e in events] == ["start", "epoch", "epoch", "epoch", "stop"]
    assert "2 epochs without a better micro F1 than that of epoch 1" in capsys.readouterr().out
    train.run(r, Single())
    assert "finished already, 2 epochs without" in capsys.readouterr().out
    assert journal.read(r.run / "journal.jsonl") == events


@pytest.mark.parametrize("kind", ["focal", "asymmetric"])
def test_other_losses_learn_too(tiny_store, tmp_path, kind):
    loss = LossRecipe(kind=kind, weights="balanced", smoothing=0.05)
    optimizer = OptimizerRecipe(kind="lamb", lr=0.02, clip_norm=1.0)
    r = recipe(tiny_store, tmp_path / "run", epochs=4, loss=loss, optimizer=optimizer, ema=0.0)
    train.run(r, Single())
    found = [e["loss"] for e in epochs(r.run)]
    assert found[-1] < 0.8 * found[0], found


def small(store: Path, run: Path, **more) -> TrainRecipe:
    """Two epochs of the quickest network, whose steps are the same by any arithmetic."""
    quick = {"model": ModelRecipe(name="shallow", width=16), "ema": 0.0, "feed": still_feed()}
    return recipe(store, run, **quick | {"optimizer": OptimizerRecipe(kind="sgd", lr=0.01)} | more)


def still_feed(**more) -> FeedRecipe:
    return FeedRecipe(kind="plain", augment=AugmentRecipe(flips=False), **more)


def test_parts_of_a_step_add_up_to_it(tiny_store, tmp_path, apart):
    """Without BatchNorm, which sees a part at a time, three parts make the step that one makes."""
    more = {"precision": "float64", "batch": 7, "norm": "frozen"}
    for parts in (1, 3):
        train.run(small(tiny_store, tmp_path / str(parts), accumulate=parts, **more), Single())
    assert apart(tmp_path / "1", tmp_path / "3") < 1e-12
    assert epochs(tmp_path / "1")[-1]["step"] == epochs(tmp_path / "3")[-1]["step"]


def test_stopped_between_steps_of_several_parts(tiny_store, tmp_path, monkeypatch, apart):
    train.run(recipe(tiny_store, tmp_path / "whole", accumulate=2), Single())
    with monkeypatch.context() as m:
        stop_at(m, 3)
        with pytest.raises(Stopped):
            train.run(recipe(tiny_store, tmp_path / "run", accumulate=2), Single())
    train.run(recipe(tiny_store, tmp_path / "run", accumulate=2), Single())
    assert apart(tmp_path / "run", tmp_path / "whole") == 0
    assert epochs(tmp_path / "run") == epochs(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_is_near_float32_and_resumes_exactly(tiny_store, tmp_path, monkeypatch, apart, precision):
    def of(name: str, **more) -> TrainRecipe:
        return small(tiny_store, tmp_path / name, **more)

    train.run(of("float32"), Single())
    train.run(of("low", precision=precision), Single())
    with monkeypatch.context() as m:
        stop_at(m, 2)
        with pytest.raises(Stopped):
            train.run(of("resumed", precision=precision), Single())
    train.run(of("resumed", precision=precision), Single())
    assert apart(tmp_path / "resumed", tmp_path / "low") == 0
    assert 0 < apart(tmp_path / "low", tmp_path / "float32") < 0.01
    state = checkpoint.load(tmp_path / "low" / "checkpoints" / "best.pt")
    assert all(w.dtype == torch.float32 for w in state["model"].values() if w.is_floating_point())
    assert bool(state["scaler"]) == (precision == "float16")


def test_float16_passes_over_a_step_that_overflows(tiny_store, tmp_path, monkeypatch):
    """The loss scale of 65,536 is halved until gradients are finite, and no weight becomes infinite."""
    r = small(tiny_store, tmp_path / "run", precision="float16", epochs=1, loss=LossRecipe())
    original = losses.build
    monkeypatch.setattr(losses, "build", lambda *given: lambda x, y: original(*given)(x, y) * 1e4)
    train.run(r, Single())
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")
    assert state["scaler"]["scale"] < 65536
    assert all(torch.isfinite(w).all() for w in state["model"].values())


def test_compiled_it_takes_the_same_steps(tiny_store, tmp_path, apart):
    for mode in ("none", "default"):
        train.run(small(tiny_store, tmp_path / mode, compile=mode, precision="float64", epochs=1), Single())
    assert apart(tmp_path / "none", tmp_path / "default") < 1e-10
    evaluate.run(
        EvaluateRecipe(run=tmp_path / "default", store=tiny_store), Single()
    )  # its names are the network's own


def test_the_rate_grows_with_the_batch(tiny_store, tmp_path, apart):
    schedule = ScheduleRecipe(kind="constant", warmup=0)
    for name, sgd in (("lr", {"lr": 0.01}), ("scaled", {"lr": 0.004, "lr_batch": 2})):
        optimizer = OptimizerRecipe(kind="sgd", **sgd)
        train.run(small(tiny_store, tmp_path / name, batch=5, optimizer=optimizer, schedule=schedule), Single())
    assert apart(tmp_path / "lr", tmp_path / "scaled") == 0


@pytest.mark.parametrize(
    "more",
    [
        {"subset": 0.5},
        {"oversample": OversampleRecipe(share=0.6)},
        {"labels": "bigearthnet-19", "oversample": OversampleRecipe(share=0.9, most=3), "accumulate": 2},
    ],
)
def test_what_was_drawn_is_proven_too(tiny_store, tmp_path, monkeypatch, more):
    r = small(tiny_store, tmp_path / "run", batch=6, feed=still_feed(journal=True), **more)
    with monkeypatch.context() as m:
        stop_at(m, 3)
        with pytest.raises(Stopped):
            train.run(r, Single())
    train.run(r, Single())
    found = prove(tmp_path / "run", Store(tiny_store))
    assert [e.exact for e in found] == [True, True]
    start = journal.read(tmp_path / "run" / "journal.jsonl")[0]
    assert found[0].samples == start["train_patches"]
    whole = len(Store(tiny_store).split("train"))
    if "subset" in more:
        assert start["train_patches"] == start["drawn_patches"] == round(whole / 2)
    else:
        left_out = np.intersect1d(start["left_out"], Store(tiny_store).split("train"))
        assert start["drawn_patches"] > start["train_patches"] == whole - len(left_out)


def test_coarser_classes_are_learnt_and_judged(tiny_store, tmp_path):
    run = train.run(small(tiny_store, tmp_path / "run", labels="corine-1"), Single())
    found = evaluate.run(EvaluateRecipe(run=run, store=tiny_store, split="all"), Single())
    assert [c["name"] for c in found["classes"]][:2] == ["Artificial surfaces", "Agricultural areas"]
    assert checkpoint.load(run / "checkpoints" / "best.pt")["model"]["fc.weight"].shape[0] == 5


def test_thresholds_are_of_the_validation_split_and_used_after(tiny_store, tmp_path):
    run = train.run(small(tiny_store, tmp_path / "run", thresholds="per-class"), Single())
    state = checkpoint.load(run / "checkpoints" / "best.pt")
    plain = train.run(small(tiny_store, tmp_path / "plain"), Single())
    assert epochs(run) == epochs(plain)  # validation is told at the one threshold, for these are fitted to it
    found = evaluate.run(EvaluateRecipe(run=run, store=tiny_store, split="test"), Single())
    assert [c["threshold"] for c in found["classes"]] == state["thresholds"] != [0.5] * 43
    with pytest.raises(RecipeError, match="were tuned on validation patches"):
        evaluate.run(EvaluateRecipe(run=run, store=tiny_store, split="val"), Single())


def test_tensorboard_has_each_epoch_once(undisturbed, tiny_store, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monkeypatch.context() as m:
        stop_at(m, 6)
        with pytest.raises(Stopped):
            train.run(recipe(tiny_store, tmp_path / "run"), Single())
    train.run(recipe(tiny_store, tmp_path / "run"), Single())
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [e for e in journal.read(tmp_path / "run" / "journal.jsonl") if e["event"] == "epoch"]
    assert [e.step for e in events.Scalars("loss")] == [e["step"] for e in lines]
    assert [e.value for e in events.Scalars("val/micro_f1")] == pytest.approx([e["val"]["micro_f1"] for e in lines])


def test_published_weights_are_where_it_begins(undisturbed, tiny_store, tmp_path):
    """Its own last weights, fine-tuned at a rate of almost nothing, are still the weights."""
    best = undisturbed / "checkpoints" / "best.pt"
    model = ModelRecipe(width=16, dropout=0.2, weights=best)
    still = OptimizerRecipe(kind="sgd", lr=1e-12)
    run = train.run(recipe(tiny_store, tmp_path / "run", model=model, optimizer=still, ema=0.0, epochs=1), Single())
    before, after = (checkpoint.load(r / "checkpoints" / "best.pt") for r in (undisturbed, run))
    assert (before["average"]["fc.weight"] - after["model"]["fc.weight"]).abs().max() < 1e-9
