"""Ingest by ranks: the same bytes for 1, 2, 3 and 7 of them, by parts in any order, and after any interruption."""

import random
import shutil
from pathlib import Path

import pytest

from tests.unit.test_ingest import Content, content

RECIPE = "{{archive: {archive}, store: {store}, patches_per_shard: 3, split: {{block_m: 1200, val: 0.25, test: 0.25}}}}"


@pytest.fixture
def recipe(tiny_archive, tmp_path):
    def write(store: str) -> Path:
        path = tmp_path / f"{store}.yaml"
        path.write_text(RECIPE.format(archive=tiny_archive, store=tmp_path / store))
        return path

    return write


@pytest.fixture
def truth(tiny_archive, tmp_path_factory, cli) -> Content:
    """The store by one process."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "r.yaml").write_text(RECIPE.format(archive=tiny_archive, store=folder / "store"))
    done = cli("ingest", folder / "r.yaml", "workers=1")
    assert done.returncode == 0, done.stderr
    return content(folder / "store")


@pytest.mark.needs("mpirun", "mpi4py")
@pytest.mark.parametrize("n", [2, 3, 7])
def test_ranks_make_the_same_bytes(ranks, recipe, truth, tmp_path, n):
    done = ranks(n, "mpirun", "ingest", recipe("s"))
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "s") == truth
    assert done.stdout.count("48 patches") == 1  # rank 0 alone speaks
    journal = (tmp_path / "s" / "journal" / "ingest.jsonl").read_text()
    assert f'"workers": {n}' in journal


@pytest.mark.needs("mpirun", "mpi4py")
def test_ranks_go_on_after_a_kill(ranks, recipe, truth, tmp_path):
    job = ranks.start(3, "mpirun", "ingest", recipe("s"))
    folder = tmp_path / "s" / "shards"
    while len(list(folder.glob("[0-9]*.h5"))) < 3 and job.process.poll() is None:
        pass
    job.kill()
    job.end()
    assert ranks(2, "mpirun", "ingest", recipe("s")).returncode == 0
    assert content(tmp_path / "s") == truth


def test_parts_in_any_order_doubled_and_lost(cli, recipe, truth, tmp_path):
    r = recipe("s")
    assert cli("store", "init", r).returncode == 0
    parts = [1, 2, 3, 4, 2]
    random.Random(1).shuffle(parts)
    for part in parts[:-2]:
        done = cli("store", "load", r, "--part", f"{part}/4", "workers=1")
        assert done.returncode == 0, done.stderr
    early = cli("store", "finalise", r)
    missing = sorted({1, 2, 3, 4} - set(parts[:-2]))
    assert early.returncode == 1 and "shards are missing or damaged" in early.stderr and missing
    for part in parts[-2:]:
        assert cli("store", "load", r, "--part", f"{part}/4", "workers=1").returncode == 0
    done = cli("store", "finalise", r, "workers=1")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "s") == truth


@pytest.mark.parametrize("part", ["0/4", "5/4", "4", "a/b"])
def test_a_part_that_is_none_is_told(cli, recipe, part):
    r = recipe("s")
    cli("store", "init", r)
    done = cli("store", "load", r, "--part", part)
    assert done.returncode in (1, 2) and "expected" in done.stderr, done.stderr


def test_finalise_and_load_want_the_plan_s_recipe(cli, recipe, tmp_path):
    r = recipe("s")
    for step in (("load", r, "--part", "1/1"), ("finalise", r)):
        done = cli("store", *step)
        assert done.returncode == 1 and "plan.jsonl: missing; `jeoparda store init` makes it" in done.stderr
    assert cli("store", "init", r).returncode == 0
    done = cli("store", "finalise", r, "patches_per_shard=4")
    assert done.returncode == 1 and "another recipe (patches_per_shard differ)" in done.stderr
    shutil.rmtree(tmp_path / "s")


@pytest.mark.needs("mpirun", "mpi4py")
def test_ranks_repair_what_tells_of_all_the_rest(ranks, recipe, truth, tmp_path):
    """Only rank 0 may look at a store that is being mended: the others would see it half done, and part ways."""
    assert ranks(2, "mpirun", "ingest", recipe("s")).returncode == 0
    for name in ("store.json", "plan.jsonl"):
        (tmp_path / "s" / name).unlink()
        done = ranks(3, "mpirun", "store", "repair", tmp_path / "s", timeout=90)
        assert done.returncode == 0, done.stderr
        assert content(tmp_path / "s") == truth and done.stdout.count("nothing to mend") == 1
    done = ranks(3, "mpirun", "store", "verify", tmp_path / "s")
    assert done.returncode == 0 and done.stdout.count("every byte as written") == 1
