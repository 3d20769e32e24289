"""A shard that vanishes or turns corrupt while ranks train: all end, one says which shard and patch and how to go on,
and after a repair the end is that of a run that nothing disturbed."""

import functools
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jeoparda.feed.seen import prove
from jeoparda.store import Store
from tests.conftest import Ranks
from tests.parallel.recipes import train_recipe

pytestmark = pytest.mark.needs("mpirun", "horovod-mpi")
FEED = ("feed.threads=1", "feed.ahead=1", "feed.journal=true")  # little is read ahead, and nothing to measure
RARE = ("accumulate=2", "oversample.share=0.6", "batch=7")  # four steps an epoch too, each of two parts


def recipe(folder: Path, store: Path) -> Path:
    """Four steps an epoch, a checkpoint each second one."""
    return train_recipe(folder, store, "epochs: 3, batch: 6, precision: float64, checkpoint: {every_steps: 2}")


@pytest.fixture(scope="module")
def undisturbed(tiny_store, tmp_path_factory, cli) -> Callable[..., Path]:
    """The run of a kind of feed: what two kinds round otherwise grows over the steps. Or of another recipe."""

    @functools.cache
    def trained(kind: str, *more: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        done = cli("train", recipe(folder, tiny_store), *FEED, f"feed.kind={kind}", *more)
        assert done.returncode == 0, done.stderr
        return folder / "run"

    return trained


# Before rank 1 reads the first batch of the third step, and when the checkpoint of the second is there, something
# happens to the first patch of that batch. What follows is the package as it is.
PROGRAM = """
import os, runpy, sys, time
from pathlib import Path
import jeoparda.feed.reader as reader

how, run, parts = sys.argv.pop(1), Path(sys.argv.pop(1)), int(sys.argv.pop(1))
read, calls = reader.Reader._read_and_check, []

def disturbed(self, pool, work, runs):
    calls.append(1)
    if len(calls) == 2 * parts + 1:
        while not (run / "checkpoints" / "00000002.pt").exists():
            time.sleep(0.01)
        store, first = self._store, work.numbers[0]
        path, at = store.paths[store.shard_of[first]], int(store.offset_of[first])
        print(f"{how}: {path.name} patch {first}", flush=True)
        if how == "vanished":
            path.unlink()
        elif how == "truncated":
            os.truncate(path, at + 1000)
        else:
            with open(path, "r+b") as f:
                f.seek(at + 1000)
                wrong = bytes(255 - b for b in f.read(4))
                f.seek(at + 1000)
                f.write(wrong)
    return read(self, pool, work, runs)

if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    reader.Reader._read_and_check = disturbed
sys.argv[0] = "jeoparda"
runpy.run_module("jeoparda", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("how", "kind", "more"),
    [
        ("vanished", "plain", ()),
        ("truncated", "plain", ()),
        ("corrupt", "plain", ()),
        ("corrupt", "plain", RARE),
        pytest.param("corrupt", "dali", (), marks=pytest.mark.needs("dali")),
    ],
)
def test_all_end_in_words_and_go_on_after_a_repair(
    ranks: Ranks, undisturbed, tiny_store, tmp_path, apart, cli, how, kind, more
):
    store, run = Path(shutil.copytree(tiny_store, tmp_path / "store")), tmp_path / "run"
    words = ("train", recipe(tmp_path, store), *FEED, f"feed.kind={kind}", *more)
    program = (sys.executable, "-c", PROGRAM, how, str(run), "2" if more else "1")
    begun = time.monotonic()
    done = ranks.start(2, "mpirun", *words, program=program).end(90)
    assert done.returncode != 0 and time.monotonic() - begun < 60
    happened = re.search(rf"{how}: (\S+) patch (\d+)", done.stdout)
    assert happened, done.stderr
    shard, patch = happened.groups()
    told = re.search(r"jeoparda: rank \d of 2: (.*)", done.stderr)
    assert told and "Traceback" not in done.stderr, done.stderr
    assert f"{store / 'shards' / shard}: " in told[1]
    which = patch if how != "vanished" else r"\d+"  # a shard stays open for an epoch; another patch may find it gone
    assert re.search(f"patch {which} ", told[1])
    assert "`jeoparda store repair`" in told[1]
    after = re.search(r"; then start the run again: it goes on from step (\d+), its last checkpoint$", told[1])
    assert after and int(after[1]) in ((2,) if how != "vanished" else (2, 4)), told[1]

    repaired = cli("store", "repair", store)
    assert repaired.returncode == 0, repaired.stderr
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    epoch, step = map(int, re.search(r"going on from epoch (\d+), step (\d+)", done.stdout).groups())
    assert (epoch - 1) * 4 + step >= int(after[1])
    assert apart(run, undisturbed(kind, *more)) < 1e-10
    assert [e.exact for e in prove(run, Store(store))] == [True, True, True]
