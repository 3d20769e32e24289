"""Training's benchmarks: what the loop is held against does its work, and what is reported was done."""

import json
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import rasterio
import torch

from benchmarks.train import chips, gpu, recipes
from benchmarks.train.loop import epoch, training
from benchmarks.train.overhead import Bare
from benchmarks.train.ranks import Team, Turn, command, compare, table, together
from benchmarks.turns import ratio
from jeoparda.comm import Single
from jeoparda.config import load
from jeoparda.journal import read
from jeoparda.launch.local import launcher
from jeoparda.train import TrainRecipe

pytestmark = pytest.mark.usefixtures("keep_signals")

SMALL = {"model": {"name": "resnet18", "width": 16}, "batch": 4, "feed": {"kind": "plain"}}


# ---- recipes


def test_every_recipe_of_training_has_a_row():
    assert sorted(f"train-{r.name}" for r in recipes.rows()) == sorted(
        p.stem for p in recipes.DOCS.glob("train-*.yaml")
    )
    assert [r.name for r in recipes.rows(["unet", "chips"])] == ["unet", "chips"]


@pytest.mark.parametrize("row", recipes.rows(), ids=lambda r: r.name)
def test_a_row_s_words_fit_its_recipe(row):
    r = load(TrainRecipe, recipes.DOCS / f"train-{row.name}.yaml", row.words)
    assert 0 < row.bar < 1 and row.seeds and r.epochs <= 20
    if row.weights:
        load(TrainRecipe, recipes.DOCS / "train-resnet18-rgb.yaml", row.weights)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "WORK", tmp_path)
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results.json")
    return tmp_path


def test_a_run_s_figures_are_those_of_its_evaluation(tiny_store, folders):
    words = ["subset=1", "model.width=16", "epochs=2", "batch=4", "feed.kind=plain", "thresholds=per-class"]
    row = recipes.Row("resnet18-onecycle", words, [3], "", 0.5)
    found = recipes.train(row, 3, tiny_store)
    run = folders / "train" / "resnet18-onecycle-3"
    evaluated = json.loads((run / "evaluation.json").read_text())
    assert evaluated["thresholds"] == found["thresholds"] == "per-class"
    assert found["score"] == evaluated["micro"]["f1"] and found["map"] == evaluated["map"]
    assert found["samples_f1"] == evaluated["samples_average"]["f1"]
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    names = dict(training_parameters(tiny_store))
    assert found["parameters"] == sum(state["model"][name].numel() for name in names)
    assert state["about"]["model"]["name"] == "resnet18" and read(run / "journal.jsonl")[0]["recipe"]["seed"] == 3
    assert found["epochs"] == 2 and found["images"] == 2 * read(run / "journal.jsonl")[0]["train_patches"]
    assert found["gflops_per_image"] > 0 and found["minutes"] > 0
    again = recipes.train(row, 3, tiny_store)  # trained anew, for code may have changed: to the same figures
    starts = [e for e in read(run / "journal.jsonl") if e["event"] in ("start", "resume")]
    assert [e["event"] for e in starts] == ["start"]
    assert again | {"minutes": 0} == found | {"minutes": 0}


def training_parameters(store):
    with training(Single(), store=str(store), **SMALL) as (t, _):
        yield from t.model.named_parameters()


def test_weights_to_begin_from_are_parameters_and_nothing_else(tiny_store, folders):
    less = ["subset=1", "model.width=16", "epochs=1", "batch=4", "feed.kind=plain"]
    words = ["model.name=resnet18", "model.weights_bands=[B02,B03,B04]", *less]
    found = recipes.train(
        recipes.Row("finetune", words, [0], "", 0.5, weights=["labels=corine-2", *less]), 0, tiny_store
    )
    published = torch.load(folders / "train" / "finetune-0-weights" / "published.pth", weights_only=True)
    assert published["conv1.weight"].shape == (16, 3, 7, 7) and all(
        isinstance(x, torch.Tensor) for x in published.values()
    )
    start = read(folders / "train" / "finetune-0" / "journal.jsonl")[0]
    assert "inflated from B02, B03, B04" in start["weights"] and "fc fresh" in start["weights"]
    assert found["model"]["weights_bands"] == ["B02", "B03", "B04"]


def _line(name, *scores, task="multi-label", thresholds="fixed"):
    run = {"task": task, "macro_f1": 0.5, "macro_f1_fixed_threshold": 0.25, "map": 0.125, "thresholds": thresholds}
    run |= {"model": {"name": "unet", "width": 16}, "parameters": 1_230_000, "gflops_per_image": 4.567, "minutes": 3.21}
    return {"name": name, "reached": "", "bar": 0.6, "runs": [run | {"score": s} for s in scores]}


def test_lines_are_kept_in_the_rows_order_and_replaced(folders):
    for name, score in (("unet", 0.1), ("shallow", 0.2), ("unet", 0.3)):
        recipes.record(_line(name, score))
    found = json.loads(recipes.RESULTS.read_text())
    assert [(r["name"], r["runs"][0]["score"]) for r in found] == [("shallow", 0.2), ("unet", 0.3)]


def test_the_table_says_what_each_run_reached():
    lines = [
        _line("unet", 0.71, 0.7),
        _line("unbalanced", 0.8, thresholds="per-class"),
        _line("chips", 0.9, task="single-label"),
    ]
    rows = recipes.table(lines).splitlines()[2:]
    assert rows[0] == (
        "| train-unet | unet, width 16 | 1.23 M | 4.57 | – | micro F1 0.710, 0.700; macro F1 0.500, 0.500; "
        "mAP 0.125, 0.125 | 0.6 | 3.2, 3.2 |"
    )
    assert "macro F1 0.500, with one threshold for all 0.250" in rows[1] and "accuracy 0.900" in rows[2]
    assert len({row.count("|") for row in recipes.table(lines).splitlines()}) == 1


def test_chips_are_the_patches_of_one_class(tmp_path):
    rng = np.random.default_rng(0)
    names = ("Sea and ocean", "Coastal lagoons", "Pastures", "Peatbogs")  # two of them water, at level 1
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.uint8)
    pixels = rng.integers(0, 9999, (5, 6, 60, 60), dtype=np.uint16)
    columns = {
        "id": np.array([f"p{i}" for i in range(5)]),
        "crs": np.array(["EPSG:32633"] * 5),
        "transform": np.array([[10.0, 0.0, 4e5 + 1200 * i, 0.0, -10.0, 5e6] for i in range(5)]),
    }
    store = SimpleNamespace(
        info=SimpleNamespace(classes=names), labels=labels, column=columns.get, patch=lambda i: {"20m": pixels[i]}
    )
    chips.write(tmp_path / "all", store, 1)
    found = {str(p.relative_to(tmp_path / "all")) for p in tmp_path.glob("all/*/*")}
    assert found == {"Water bodies/p0.tif", "Water bodies/p1.tif", "Agricultural areas/p3.tif", "Wetlands/p4.tif"}
    with rasterio.open(tmp_path / "all" / "Water bodies" / "p1.tif") as f:
        np.testing.assert_array_equal(f.read(), pixels[1])
        assert f.bounds == (401200, 5e6 - 1200, 402400, 5e6) and f.res == (20, 20)
    chips.write(tmp_path / "many", store, 2)
    assert [p.name for p in (tmp_path / "many").iterdir()] == ["Water bodies"]


# ---- the loop, and what it is held against


def test_an_epoch_of_so_many_steps(tiny_store):
    with training(Single(), store=str(tiny_store), **SMALL) as (t, _):
        patches = t.feed.plan.order.count
    with training(Single(), store=str(tiny_store), **SMALL | {"subset": 8 / patches}) as (t, _):
        assert t.steps == 2
        images, seconds = epoch(t)
        assert images == 8 and seconds > 0 and (t.loop.epoch, t.loop.step) == (1, 0)
        assert epoch(t)[0] == 8 and not any(t.r.run.iterdir())


def test_the_bare_steps_are_the_loop_s(tiny_store):
    """From the same weights on the same batches, both come to the same weights."""
    keys = SMALL | {
        "schedule": {"kind": "constant", "warmup": 0.0},
        "feed": {"kind": "plain", "augment": {"flips": False}},
        "precision": "float64",
    }
    with training(Single(), store=str(tiny_store), **keys) as (t, _):
        bare = Bare(t)
        before = [p.clone() for p in bare.model.parameters()]
        epoch(t)
        bare.turn()
        for loop, own, was in zip(t.model.parameters(), bare.model.parameters(), before, strict=True):
            torch.testing.assert_close(loop, own, atol=1e-10, rtol=0)
            assert not torch.equal(own, was)
        assert {image.is_contiguous(memory_format=torch.channels_last) for image, _ in bare.batches} == {True}


# ---- ranks


def test_a_turn_of_one_rank(tiny_store):
    keys = {"store": str(tiny_store), **SMALL}
    team = Team(command(min(os.sched_getaffinity(0)), keys), env={})
    turn = team.turn()
    team.close()
    assert turn.images_per_s > 0 and len(turn.resident_mb) == 1 and 50 < turn.resident_mb[0] < 5_000


@pytest.mark.needs("mpirun", "horovod-mpi")
def test_a_turn_of_two_ranks_is_of_the_global_batch(tiny_store):
    keys = {"store": str(tiny_store), **SMALL, "norm": "local"}
    with training(Single(), **keys) as (t, _):
        images = t.feed.plan.order.count
        steps = t.steps
    core = min(os.sched_getaffinity(0))
    team = Team(together([core, core], keys), env=launcher(2).env)
    turn = team.turn()
    team.close()
    assert len(turn.resident_mb) == 2
    assert turn.images_per_s == pytest.approx(images / (turn.step_s * steps), rel=0.5)  # both train at the same time


ANSWER = "import sys; print('ready', flush=True)\nfor _ in sys.stdin: print('[{}, 0.5, [10.0]]', flush=True)"


def _rest(pids):
    """Within a second, as signals take their time."""
    end = time.monotonic() + 1
    while {psutil.Process(pid).status() for pid in pids} != {psutil.STATUS_STOPPED}:
        if time.monotonic() > end:
            return False
    return True


def _says(rate):
    return sys.executable, "-c", ANSWER.format(rate)


def test_teams_take_turns_and_rest_between_them():
    team = Team(_says(3), _says(4), env={})
    pids = [p.pid for p in team._started]
    assert _rest(pids)
    assert team.turn() == Turn(7, 0.5, (10.0, 10.0))
    assert _rest(pids)
    team.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    turns = compare({"one": (_says(3),), "pair": (_says(2), _says(2))}, {}, 4)
    assert {name: len(found) for name, found in turns.items()} == {"one": 4, "pair": 4}
    assert ratio(turns, "pair", "one") == 4 / 3


def test_a_team_that_ends_early_ends_the_measurement():
    with pytest.raises(SystemExit, match="ended with exit code 3"):
        compare({"one": (_says(3),), "none": ((sys.executable, "-c", "import sys; sys.exit(3)"),)}, {}, 1)


def test_rates_are_compared_round_by_round():
    rates = {"fast": (60, 9, 30), "slow": (20, 4.5, 1)}  # the machine was slower in the second round
    turns = {name: [Turn(rate, 1 / rate, (rate, 7.0)) for rate in found] for name, found in rates.items()}
    assert ratio(turns, "fast", "slow") == 3
    assert table(turns)["fast"] == {"images_per_s": 30, "step_s": 0.0333, "resident_mb": [60, 7], "rounds": [60, 9, 30]}


def test_both_parts_of_two_ranks_have_a_core():
    words = together([4, 7], {"batch": 8})
    assert words[0] == "mpirun" and words.count(":") == 1 and words[-1] != ":"
    assert [words[i + 2] for i, w in enumerate(words) if w == "taskset"] == ["4", "7"]


# ---- a GPU


def test_the_sides_of_the_gpu_s_benchmark(tiny_store):
    """On the processor: all of them run, and the stored ones are epochs longer than the store."""
    with training(Single(), store=str(tiny_store), **SMALL) as (t, stage):
        feed = gpu._feed(t, stage, "plain", 30)
        assert sum(len(b["number"]) for b in feed) == 120 > t.feed.plan.order.count
    found = gpu.measure(tiny_store, 3, 1, **SMALL)
    assert set(found["images_per_s"]) == {"ceiling", "loop", "stored", "feed"}
    assert all(rate > 0 for rate in found["images_per_s"].values())
    assert found["mfu"] is None and found["batch"] == 4 and found["feed"] == "plain"


@pytest.mark.parametrize(
    ("stored", "loop", "feed", "limit"),
    [
        (99, 99, 500, "network"),
        (80, 80, 500, "loop"),
        (50, 99, 55, "feed"),
        (50, 99, 500, "feed and network share the device"),
    ],
)
def test_what_limits(stored, loop, feed, limit):
    assert gpu.limit({"ceiling": 100, "loop": loop, "stored": stored, "feed": feed}) == limit
