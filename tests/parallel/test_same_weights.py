"""Any number of ranks, under any launcher, takes the same steps on the same global batches.

Training is chaotic: rectifiers that are almost 0 fall to either side by rounding, and BatchNorm with live statistics
carries that on. At a learning rate of 0.02 a difference of 1e-15 grows tenfold a step. So the sharp tests take small
steps in float64, where nothing grows: 1e-10 is then ten million times less than what training moves the weights by.
In float32 the same shows only with frozen norms.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jeoparda.ingest import IngestRecipe, SplitRecipe, run
from jeoparda.store import Store
from tests.conftest import Ranks, environment
from tests.parallel.recipes import train_recipe

SHARP = "precision=float64"
LAUNCHES = [
    pytest.param("mpirun", 2, marks=pytest.mark.needs("mpirun", "horovod-mpi")),
    pytest.param("mpirun", 4, marks=pytest.mark.needs("mpirun", "horovod-mpi")),
    pytest.param("horovodrun", 2, marks=pytest.mark.needs("horovod-gloo")),
    pytest.param("horovodrun", 4, marks=pytest.mark.needs("horovod-gloo")),
]
MPI = pytest.mark.needs("mpirun", "horovod-mpi")


def recipe(folder: Path, store: Path) -> Path:
    return train_recipe(folder, store, "epochs: 2, batch: 9")


@pytest.fixture(scope="module")
def alone(tiny_store, tmp_path_factory, cli) -> Path:
    """The run of one process, in float64."""
    folder = tmp_path_factory.mktemp("alone")
    done = cli("train", recipe(folder, tiny_store), SHARP)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def figures(run: Path) -> list[dict]:
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [e for e in events if e["event"] in ("start", "epoch")]


@pytest.mark.parametrize(("launcher", "n"), LAUNCHES)
def test_ranks_end_with_the_weights_of_one_process(ranks: Ranks, alone, tiny_store, tmp_path, apart, launcher, n):
    done = ranks(n, launcher, "train", recipe(tmp_path, tiny_store), SHARP)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert apart(run, alone) < 1e-10
    (start, *mine), (_, *theirs) = figures(run), figures(alone)
    assert (start["ranks"], start["backend"]) == (n, "horovod")
    for e, one in zip(mine, theirs, strict=True):
        assert e["loss"] == pytest.approx(one["loss"], abs=1e-9)
        assert e["val"] == pytest.approx(one["val"], abs=1e-6)  # scores are kept in float32
        assert len(e["images_per_s_per_rank"]) == len(e["wait_s"]) == n


# 50 steps of 8 patches in 10 epochs; each with clipping, accumulation, averaged weights and synchronised norms
FIFTY = ("epochs=10", "batch=8", "accumulate=2", "ema=0.9", "optimizer.clip_norm=0.05", SHARP)
OPTIMIZERS = {"sgd": 0.002, "adamw": 1e-5, "lars": 0.02, "lamb": 1e-5}
BACKENDS = [
    pytest.param(backend, n, marks=pytest.mark.needs("mpirun", need))
    for backend, need in (("horovod", "horovod-mpi"), ("torch", "mpi4py"))
    for n in (2, 4)
]


def runs(folder: Path, store: Path) -> list[str]:
    """What `tests.parallel.many` is to train in FOLDER, a run an optimizer."""
    net = ("model.name=contextual", "model.width=16")  # with few norms: four ranks on two cores take turns at each
    small = (*net, "feed.kind=plain", "feed.augment.crop_px=60", "schedule.kind=cosine")
    return [
        json.dumps(
            [f"store={store}", f"run={folder / kind}", f"optimizer.kind={kind}", f"optimizer.lr={lr}", *small, *FIFTY]
        )
        for kind, lr in OPTIMIZERS.items()
    ]


@pytest.fixture(scope="module")
def forty(tiny_archive, tmp_path_factory) -> Path:
    """A store of forty patches to train on: each step has eight, each part of one four, and four ranks one each."""
    folder = tmp_path_factory.mktemp("forty")
    names = sorted(p.name for p in tiny_archive.iterdir())
    (folder / "train.csv").write_text("\n".join(names[:40]))
    (folder / "val.csv").write_text("\n".join(names[40:]))
    lists = SplitRecipe(by="csv", train_csv=folder / "train.csv", val_csv=folder / "val.csv")
    run(IngestRecipe(archive=tiny_archive, store=folder / "store", split=lists, workers=1), lambda _: None)
    return folder / "store"


@pytest.fixture(scope="module")
def fifty(forty, tmp_path_factory) -> Path:
    """Fifty steps of one process with each optimizer."""
    folder = tmp_path_factory.mktemp("fifty")
    command = [sys.executable, "-m", "tests.parallel.many", "single", *runs(folder, forty)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("backend", "n"), BACKENDS)
def test_fifty_steps_whatever_the_optimizer(ranks: Ranks, fifty, forty, tmp_path, apart, backend, n):
    program = (sys.executable, "-m", "tests.parallel.many", backend, *runs(tmp_path, forty))
    done = ranks.start(n, "mpirun", program=program).end(400)
    assert done.returncode == 0, done.stderr
    for kind in OPTIMIZERS:
        (start, *_), (_, *e) = figures(tmp_path / kind), figures(fifty / kind)
        assert (start["ranks"], start["backend"], e[-1]["step"]) == (n, backend, 50)
        assert apart(tmp_path / kind, fifty / kind) < 1e-10, kind


def test_the_fifty_steps_move_the_weights_and_differ(fifty, apart):
    """The tests above would see a rank that takes another step, or none."""
    kinds = list(OPTIMIZERS)
    for one, other in itertools.pairwise(kinds):
        assert apart(fifty / one, fifty / other) > 1e-5


@MPI
def test_with_weighted_focal_loss_and_oversampling(ranks: Ranks, alone, tiny_store, tmp_path, apart, cli):
    words = (SHARP, "loss.kind=focal", "loss.weights=balanced", "oversample.share=0.6")
    assert cli("train", recipe(tmp_path, tiny_store), f"run={tmp_path / 'one'}", *words).returncode == 0
    done = ranks(4, "mpirun", "train", recipe(tmp_path, tiny_store), f"run={tmp_path / 'four'}", *words)
    assert done.returncode == 0, done.stderr
    assert apart(tmp_path / "four", tmp_path / "one") < 1e-10
    assert apart(tmp_path / "one", alone) > 1e-6  # it is another recipe, which moves the weights otherwise


@MPI
@pytest.mark.needs("dali")
def test_so_does_the_dali_feed(ranks: Ranks, alone, tiny_store, tmp_path, apart):
    done = ranks(2, "mpirun", "train", recipe(tmp_path, tiny_store), SHARP, "feed.kind=dali")
    assert done.returncode == 0, done.stderr
    assert apart(tmp_path / "run", alone) < 1e-5  # its images agree to 1e-5, not bit for bit


@MPI
def test_with_norms_of_each_rank_s_own_share_it_is_another_run(ranks: Ranks, alone, tiny_store, tmp_path, apart):
    """The negative of the tests above: they would see ranks that do not synchronise."""
    done = ranks(2, "mpirun", "train", recipe(tmp_path, tiny_store), SHARP, "norm=local")
    assert done.returncode == 0, done.stderr
    assert apart(tmp_path / "run", alone) > 1e-3


@MPI
def test_in_float32_with_frozen_norms(ranks: Ranks, tiny_store, tmp_path, apart, cli):
    words = ("norm=frozen", "optimizer.lr=1e-4")
    assert cli("train", recipe(tmp_path, tiny_store), f"run={tmp_path / 'one'}", *words).returncode == 0
    done = ranks(2, "mpirun", "train", recipe(tmp_path, tiny_store), f"run={tmp_path / 'two'}", *words)
    assert done.returncode == 0, done.stderr
    assert apart(tmp_path / "one", tmp_path / "two") < 1e-5


@MPI
def test_evaluation_is_the_same_to_the_last_patch(ranks: Ranks, alone, tiny_store, tmp_path, cli):
    """48 patches in batches of 10 over 1, 2 and 4 ranks; a split of fewer patches than ranks besides."""
    path = tmp_path / "e.yaml"
    path.write_text(
        f"{{run: {alone}, store: {tiny_store}, split: all, batch: 10, feed: {{kind: plain}}, samples: 2}}\n"
    )
    found = {}
    for n in (1, 2, 4):
        done = ranks(n, "mpirun", "evaluate", path) if n > 1 else cli("evaluate", path)
        assert done.returncode == 0, done.stderr
        found[n] = json.loads((alone / "evaluation.json").read_text())
        assert done.stdout.count("patches of all") == 1  # rank 0 speaks, no other
    assert found[1]["patches"] == 48
    assert sum(c["support"] for c in found[1]["classes"]) == Store(tiny_store).labels.sum()
    for n in (2, 4):
        for key in ("patches", "split", "checkpoint", "micro", "macro"):
            assert found[n][key] == found[1][key], key
        for key in ("loss", "map"):
            assert found[n][key] == pytest.approx(found[1][key], abs=1e-6)
        for mine, one in zip(found[n]["classes"], found[1]["classes"], strict=True):
            assert (mine["support"], mine["predicted"]) == (one["support"], one["predicted"])


@MPI
def test_fewer_patches_than_ranks(ranks: Ranks, alone, tiny_archive, tmp_path):
    """Some ranks have nothing to do, and must not keep the others waiting."""
    names = sorted(p.name for p in tiny_archive.iterdir())
    (tmp_path / "train.csv").write_text("\n".join(names[:3]))
    (tmp_path / "test.csv").write_text("\n".join(names[3:5]))
    lists = SplitRecipe(by="csv", train_csv=tmp_path / "train.csv", test_csv=tmp_path / "test.csv")
    store = tmp_path / "store"
    run(IngestRecipe(archive=tiny_archive, store=store, split=lists, workers=1), lambda _: None)
    path = tmp_path / "e.yaml"
    path.write_text(f"{{run: {alone}, store: {store}, split: test, batch: 10}}\n")
    done = ranks(4, "mpirun", "evaluate", path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads((alone / "evaluation.json").read_text())["patches"] == 2
