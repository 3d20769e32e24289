"""Killed at any moment, ingest goes on to the same bytes, and leaves no shard that can be read but is not whole."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from jeoparda.errors import StoreError
from jeoparda.ingest import IngestRecipe, SplitRecipe, run
from jeoparda.ingest import plan as plans
from jeoparda.store import Store, finished
from tests.archive import make_archive
from tests.unit.test_ingest import content

KILLS, PATCHES = 100, 24


def ingest(r: IngestRecipe, started) -> None:
    started.set()
    run(r, lambda _: None)
    os._exit(0)  # as fast as a kill: nothing is left to do


def whole(store: Path) -> int:
    """The number of shards that are there; each of them must be whole."""
    shards = sorted((store / "shards").glob("[0-9]*.h5")) if (store / "shards").exists() else []
    for path in shards:
        assert finished(store, int(path.stem), plans.read(store).digest(int(path.stem))), f"{path} is not whole"
    if (store / "store.json").exists():
        assert len(Store(store)) == PATCHES
    else:
        with pytest.raises(StoreError):
            Store(store)
    return len(shards)


def test_killed_at_a_hundred_random_moments(tmp_path):
    archive = make_archive(tmp_path / "archive", PATCHES)
    split = SplitRecipe(block_m=1200, val=0.25, test=0.25)
    recipe = IngestRecipe(archive=archive, store=tmp_path / "s", patches_per_shard=2, workers=1, split=split)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["jeoparda.ingest"])
    rng = random.Random(0)

    def start(r: IngestRecipe) -> multiprocessing.process.BaseProcess:
        started = processes.Event()
        process = processes.Process(target=ingest, args=(r, started))
        process.start()
        assert started.wait(60)
        return process

    undisturbed = IngestRecipe(**{**recipe.__dict__, "store": tmp_path / "undisturbed"})
    begin = time.monotonic()
    start(undisturbed).join()
    takes = time.monotonic() - begin
    truth = content(tmp_path / "undisturbed")
    kills, stores, depths = 0, 0, set()
    while kills < KILLS:
        process = start(recipe)
        process.join(rng.uniform(0, 0.7 * takes))
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            kills += 1
            depths.add(whole(tmp_path / "s"))
            continue
        assert process.exitcode == 0
        assert content(tmp_path / "s") == truth
        stores += 1
        shutil.rmtree(tmp_path / "s")
    start(recipe).join()
    assert content(tmp_path / "s") == truth
    assert stores and len(depths) > 8, f"{stores} stores finished, killed after {sorted(depths)} shards"
