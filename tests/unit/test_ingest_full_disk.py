"""A disk that is full, or a quota used up, at any moment: told in one line, nothing partial, and then to the end.

The disk is a real tmpfs of the size that a test asks for, its quota of inodes or bytes the kernel's own.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jeoparda.config import check
from jeoparda.errors import JeopardaError
from jeoparda.ingest import IngestRecipe, run
from jeoparda.ingest.upkeep import repair
from jeoparda.store import Store, StoreInfo
from tests.archive import make_archive
from tests.conftest import JEOPARDA, environment
from tests.unit.test_ingest import Content, content
from tests.unit.test_upkeep import flip

PAGE = 4096
PATCHES = 4


class Disk:
    """A tmpfs. `resize(size=..., nr_inodes=...)` while it is in use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)

    def resize(self, **limits: int) -> None:
        options = ",".join(f"{k}={v}" for k, v in {"size": 4 << 20, "nr_inodes": 1000, **limits}.items())
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def full(self, spare: int = 0) -> None:
        """No more than `spare` bytes beyond what is used now."""
        s = os.statvfs(self.folder)
        self.resize(size=(s.f_blocks - s.f_bfree) * s.f_bsize + max(spare, PAGE))

    def empty(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    subprocess.run(["umount", made.folder], check=True)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict:
    archive = make_archive(tmp_path_factory.mktemp("full") / "archive", PATCHES)
    return {"archive": str(archive), "patches_per_shard": 1, "split": {"by": "none"}}


@pytest.fixture(scope="module")
def truth(given, tmp_path_factory) -> Content:
    store = tmp_path_factory.mktemp("truth") / "store"
    ingest(given, store)
    return content(store)


def ingest(given: dict, store: Path) -> None:
    run(check(IngestRecipe, {**given, "store": store, "workers": 1}), lambda _: None)


def partial(store: Path, truth: Content) -> list[str]:
    """What is there by its name, hidden or not, and is not byte for byte what it is to be."""
    there = content(store) if store.exists() else {}
    return [name for name, held in there.items() if truth.get(name) != held]


def outcomes(disk: Disk, given: dict, truth: Content, limits: list[dict[str, int]]) -> list[OSError]:
    """Ingest under each limit, from scratch, and then without one. The errors that are not meant for a user."""
    raw, clear = [], []
    for limit in limits:
        disk.empty()
        disk.resize(**limit)
        try:
            ingest(given, disk.folder / "s")
            assert content(disk.folder / "s") == truth
        except JeopardaError as e:
            clear.append(str(e))
        except OSError as e:
            raw.append(e)
        assert partial(disk.folder / "s", truth) == [], limit
        disk.resize()
        ingest(given, disk.folder / "s")
        assert content(disk.folder / "s") == truth, limit
    assert clear and all("No space left on device" in text and "make room" in text for text in clear)
    return raw


def pages(truth: Content) -> list[dict[str, int]]:
    """Sizes from nothing to enough: closely at the ends, where the plan, the journal and store.json are written."""
    least = sum(-(-size // PAGE) for size, _ in truth.values())
    wanted = [*range(1, 6), *range(6, least - 4, 23), *range(least - 4, least + 6)]
    return [{"size": n * PAGE} for n in wanted]


INODES = [{"nr_inodes": n} for n in range(1, 14)]


@pytest.mark.needs("mount")
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_nothing_partial_and_then_the_same_bytes_whatever_room_there_is(disk, given, truth, what):
    outcomes(disk, given, truth, pages(truth) if what == "bytes" else INODES)


@pytest.mark.needs("mount")
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_clear_line_whatever_room_there_is(disk, given, truth, what):
    few = pages(truth)
    assert outcomes(disk, given, truth, [few[0], *few[-7:]] if what == "bytes" else INODES) == []


# ---- through the command line, step by step


def command(given: dict, folder: Path, store: Path) -> Path:
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(given | {"store": str(store), "workers": 1}))
    return path


def stopped(done: subprocess.CompletedProcess[str], file: str) -> None:
    """Exit 1 and one message, which says file, reason and what to do."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("jeoparda: ") and file in last and "make room" in last, last
    assert "run the same command again" in last, last


@pytest.mark.needs("mount")
@pytest.mark.parametrize("workers", [1, 2])
def test_full_while_shards_are_written(cli, disk, given, truth, tmp_path, workers):
    store, recipe = disk.folder / "s", command(given, tmp_path, disk.folder / "s")
    disk.resize(size=100 * PAGE)  # a shard takes 43
    stopped(cli("ingest", recipe, f"workers={workers}"), f"{store}/shards/0000")
    assert [*(store / "shards").glob("[0-9]*")] != [] and not (store / "store.json").exists()
    assert partial(store, truth) == []
    told = cli("store", "info", store)
    assert told.returncode == 1 and "an ingest began and did not finish: run it again" in told.stderr
    disk.resize()
    done = cli("ingest", recipe, f"workers={workers}")
    assert done.returncode == 0 and content(store) == truth, done.stderr


@pytest.mark.needs("mount")
def test_full_while_the_plan_is_written(cli, disk, given, truth, tmp_path):
    recipe = command(given, tmp_path, disk.folder / "s")
    disk.full()
    try:
        stopped(cli("store", "init", recipe), str(disk.folder))
    finally:
        disk.resize()
        assert cli("ingest", recipe).returncode == 0 and content(disk.folder / "s") == truth


@pytest.mark.needs("mount")
def test_full_while_shards_are_added_up(cli, disk, given, truth, tmp_path):
    store, recipe = disk.folder / "s", command(given, tmp_path, disk.folder / "s")
    disk.resize()
    for step in (("init", recipe), ("load", recipe, "--part", "1/1")):
        assert cli("store", *step).returncode == 0
    disk.full()
    try:
        done = cli("store", "finalise", recipe)
        assert partial(store, truth) == [] and not (store / "store.json").exists()
        stopped(done, str(store))
    finally:
        disk.resize()
        assert cli("store", "finalise", recipe).returncode == 0 and content(store) == truth


@pytest.mark.needs("mount")
def test_full_while_a_shard_is_mended(disk, given, truth):
    """The damaged shard stays as it was until a whole one takes its place."""
    store = disk.folder / "s"
    disk.resize()
    ingest(given, store)
    flip(store / "shards" / "00002.h5", StoreInfo.read(store).shards[2].offset + 70, 4)
    before = content(store)
    disk.full(10 * PAGE)
    with pytest.raises(JeopardaError, match=r"No space left on device.*make room"):
        repair(store, count=1, say=lambda _: None)
    assert content(store) == before
    disk.resize()
    assert repair(store, count=1, say=lambda _: None) == 1 and content(store) == truth


@pytest.mark.parametrize("limit", [100_000, 3000], ids=["a shard", "the plan"])
def test_a_limit_on_the_size_of_files_is_told_like_a_quota(given, truth, tmp_path, limit):
    """RLIMIT_FSIZE, as `ulimit -f` sets it: the kernel refuses in the middle of a write."""
    recipe, store = command(given, tmp_path, tmp_path / "s"), tmp_path / "s"
    done = subprocess.run(
        [*JEOPARDA, "ingest", recipe],
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )
    assert partial(store, truth) == []
    ingest(given, store)
    assert content(store) == truth and len(Store(store)) == PATCHES
    stopped(done, str(store))
