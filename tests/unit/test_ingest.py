"""Ingest: real patches bit for bit, whatever is wrong with an archive told, whoever does the work the same bytes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jeoparda.errors import ArchiveError, RecipeError, StoreError
from jeoparda.files import sha256
from jeoparda.ingest import IngestRecipe, SplitRecipe, run
from jeoparda.ingest.bigearthnet import BigEarthNetRecipe
from jeoparda.ingest.upkeep import verify
from jeoparda.nomenclature import CLC, nomenclature
from jeoparda.raster import write_band
from jeoparda.store import Store
from tests.archive import NAMES, make_archive
from tests.conftest import JEOPARDA, environment

BLOCKS = SplitRecipe(block_m=1200, val=0.25, test=0.25, stratify=False)


def ingest(archive: Path, store: Path, **more) -> tuple[Store, list[str]]:
    """The store, and what was said while making it."""
    said: list[str] = []
    run(IngestRecipe(**{"archive": archive, "store": store, "workers": 1, "split": BLOCKS} | more), said.append)
    return Store(store), said


Content = dict[str, tuple[int, str]]


def content(folder: Path) -> Content:
    """(size, digest) of every file, hidden ones too, but the journal, which tells the time."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != "journal")
    return {str(p.relative_to(folder)): (p.stat().st_size, sha256(p)) for p in files}


def truth(archive: Path) -> dict[str, dict]:
    """id -> labels' JSON of every patch whose JSON is one."""
    found = {}
    for path in archive.glob("*/*_labels_metadata.json"):
        try:
            found[path.parent.name] = json.loads(path.read_text())
        except ValueError:
            continue
    return found


# ---- the real patches


@pytest.fixture(scope="module")
def real(real_patches, tmp_path_factory) -> tuple[Store, list[str]]:
    return ingest(real_patches, tmp_path_factory.mktemp("real") / "store", patches_per_shard=8, split=SplitRecipe())


def test_every_band_of_every_real_patch_is_bit_equal(real, real_patches):
    store, _ = real
    ids = store.column("id")
    assert ids.tolist() == sorted(truth(real_patches)) and len(ids) == 29
    for number, name in enumerate(ids):
        for band in store.info.bands:
            with rasterio.open(real_patches / name / f"{name}_{band}.tif") as f:
                expected = f.read(1)
                place = f.transform
            found = store.band(number, band)
            assert found.dtype == expected.dtype == np.uint16
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} {band}")
            transform = store.column("transform")[number]
            assert (place.c, place.f) == (transform[2], transform[5])
            assert store.column("crs")[number] == f"EPSG:{f.crs.to_epsg()}"


def test_real_labels_and_dates(real, real_patches):
    store, _ = real
    for number, name in enumerate(store.column("id")):
        meta = truth(real_patches)[name]
        found = [n for n, has in zip(store.info.classes, store.labels[number], strict=True) if has]
        assert sorted(found) == sorted(meta["labels"])
        assert store.column("date")[number] == meta["acquisition_date"].replace(" ", "T")
        assert store.column("valid_fraction")[number] == (store.patch(number)["10m"] > 0).all(0).mean()


def test_the_malformed_json_is_one_clear_line(real):
    store, said = real
    lines = [s for s in said if s.startswith("rejected: ")]
    name = "S2A_MSIL2A_20170613T101031_0_46"
    assert len(lines) == 1
    assert f"{name}/{name}_labels_metadata.json: not valid JSON at line 4" in lines[0]
    assert [r.id for r in store.info.rejected] == [name]
    assert any("29 patches" in s and "1 rejected" in s for s in said)


@pytest.mark.parametrize("strict", [False, True])
def test_strict_makes_it_exit_1(cli, real_patches, tmp_path, strict):
    recipe = tmp_path / "i.yaml"
    recipe.write_text(f"archive: {real_patches}\nstore: {tmp_path / 'store'}\nworkers: 1\n")
    done = cli("ingest", recipe, f"strict={str(strict).lower()}")
    assert done.returncode == int(strict), done.stderr
    assert done.stdout.count("_0_46_labels_metadata.json: not valid JSON") == 1
    assert (tmp_path / "store" / "store.json").exists() is not strict
    if strict:
        assert "1 rejected, and strict is set" in done.stderr and "Traceback" not in done.stderr


def test_the_19_class_set_of_real_patches(real_patches, tmp_path):
    store, _ = ingest(real_patches, tmp_path / "store", bigearthnet=BigEarthNetRecipe(nomenclature="bigearthnet-19"))
    index = nomenclature("bigearthnet-19").index
    for number, name in enumerate(store.column("id")):
        expected = {index[n] for n in truth(real_patches)[name]["labels"] if n in index}
        assert set(np.flatnonzero(store.labels[number])) == expected
    assert len(store.info.classes) == 19 and len(store) == 29


# ---- nomenclatures


def test_published_mapping_of_43_to_19_classes():
    """By CORINE code, as in Sumbul et al. 2021; the 11 that it drops."""
    index = nomenclature("bigearthnet-19").index
    dropped = {c.code for c in CLC if c.name not in index}
    assert dropped == {122, 123, 124, 131, 132, 133, 141, 142, 332, 334, 335, 423}
    groups: dict[int, set[int]] = {}
    for c in CLC:
        if c.name in index:
            groups.setdefault(index[c.name], set()).add(c.code)
    merged = {min(codes): codes for codes in groups.values() if len(codes) > 1}
    assert merged == {
        111: {111, 112}, 211: {211, 212, 213}, 221: {221, 222, 223, 241}, 321: {321, 333}, 322: {322, 323},
        411: {411, 412}, 421: {421, 422}, 511: {511, 512}, 521: {521, 522, 523},
    }  # fmt: skip
    assert len(groups) == 19
    assert len(nomenclature("bigearthnet-43").classes) == 43
    assert "Glaciers and perpetual snow" not in nomenclature("bigearthnet-43").classes


def relabel(archive: Path, number: int, labels: list[str]) -> str:
    name = sorted(p.name for p in archive.iterdir())[number]
    path = archive / name / f"{name}_labels_metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": labels}))
    return name


def test_19_classes_drop_patches_left_without_a_label(tmp_path):
    archive = make_archive(tmp_path / "a", 6)
    gone = relabel(archive, 2, ["Airports", "Bare rock"])
    kept = relabel(archive, 4, ["Airports", "Bare rock", "Vineyards"])
    store, said = ingest(archive, tmp_path / "s19", bigearthnet=BigEarthNetRecipe(nomenclature="bigearthnet-19"))
    assert gone not in store.column("id") and kept in store.column("id") and len(store) < 6
    left = 6 - len(store)
    assert any(f"{left} patches left out: no label in bigearthnet-19" in s for s in said)
    assert not store.info.rejected  # left out is not rejected
    assert len(ingest(archive, tmp_path / "s43")[0]) == 6


# ---- splits


def test_no_block_is_in_two_splits(tmp_path):
    archive = make_archive(tmp_path / "a", 40)
    store, _ = ingest(archive, tmp_path / "s", split=SplitRecipe(block_m=2400, val=0.3, test=0.3))
    corners = store.column("transform")[:, [2, 5]] // 2400
    blocks: dict[tuple, set[str]] = {}
    for block, split in zip(map(tuple, corners), store.column("split"), strict=True):
        blocks.setdefault(block, set()).add(split)
    assert len(blocks) < 30 and all(len(s) == 1 for s in blocks.values())
    assert all(store.info.splits[s] > 0 for s in ("train", "val", "test"))


def test_splits_by_the_dataset_s_own_lists(tmp_path):
    archive = make_archive(tmp_path / "a", 8)
    names = sorted(p.name for p in archive.iterdir())
    lists = {"train": names[:4], "val": names[4:6], "test": names[6:7]}
    for split, of in lists.items():
        (tmp_path / f"{split}.csv").write_text("".join(f"{n},x\n" for n in of))
    paths = {f"{s}_csv": tmp_path / f"{s}.csv" for s in lists}
    store, said = ingest(archive, tmp_path / "s", split=SplitRecipe(by="csv", **paths))
    for split, of in lists.items():
        assert store.column("id")[store.split(split)].tolist() == of
    assert any("1 patches left out: in no split list" in s for s in said)
    (tmp_path / "val.csv").write_text(names[0])
    with pytest.raises(RecipeError, match=rf"val\.csv: patch {names[0]} stands in the train list too"):
        ingest(archive, tmp_path / "s2", split=SplitRecipe(by="csv", **paths))
    with pytest.raises(RecipeError, match=r"needs split\.train_csv"):
        ingest(archive, tmp_path / "s3", split=SplitRecipe(by="csv"))
    with pytest.raises(RecipeError, match=r"x\.csv: cannot read the split list"):
        ingest(archive, tmp_path / "s4", split=SplitRecipe(by="csv", train_csv=tmp_path / "x.csv"))
    with pytest.raises(RecipeError, match="nothing is left to train on"):
        ingest(archive, tmp_path / "s5", split=SplitRecipe(val=0.5, test=0.5))


# ---- archives with faults


def break_band(path: Path, how: str) -> None:
    with rasterio.open(path) as f:
        array, place = f.read(1), tuple(f.transform)[:6]
    if how == "shape":
        write_band(path, array[:-1], "EPSG:32633", place)
    elif how == "type":
        write_band(path, array.astype(np.uint8), "EPSG:32633", place)
    elif how == "CRS":
        write_band(path, array, "EPSG:32632", place)
    elif how == "no CRS":
        write_band(path, array, "", place)
    elif how == "place":
        write_band(path, array, "EPSG:32633", (place[0], 0.0, place[2] + 20, 0.0, place[4], place[5]))
    elif how == "torn":
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "no raster":
        path.write_text("404 not found")
    else:
        path.unlink()


FAULTS = {
    "shape": "(59, 60)", "type": "'uint8'", "CRS": "'EPSG:32632'", "no CRS": "''", "place": "expected (",
    "torn": "cannot be read", "no raster": "cannot be read", "missing": "missing",
}  # fmt: skip


@pytest.mark.parametrize(("how", "told"), FAULTS.items())
def test_a_band_that_is_not_what_it_should_be_is_named(tmp_path, how, told):
    archive = make_archive(tmp_path / "a", 4)
    name = sorted(p.name for p in archive.iterdir())[1]
    path = archive / name / f"{name}_B11.tif"
    break_band(path, how)
    store, said = ingest(archive, tmp_path / "s")
    (line,) = [s for s in said if s.startswith("rejected: ")]
    assert str(path.relative_to(archive)) in line and told in line, line
    assert name not in store.column("id") and len(store) == 3
    assert [r.id for r in store.info.rejected] == [name]
    assert verify(store.folder, 1) == []


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        (None, "missing"),
        ("{", "not valid JSON at line 1"),
        ("[]", "expected labels, coordinates"),
        ({"labels": None}, "labels"),
        ({"labels": [["Pastures"]]}, "labels"),
        ({"labels": ["Pasture"]}, "'Pasture' is no CORINE level-3 class"),
        ({"coordinates": {"ulx": 1}}, "'uly'"),
        ({"coordinates": {"ulx": "x", "uly": 1}}, "coordinates"),
        ({"projection": "nowhere"}, "projection"),
        ({"acquisition_date": 5}, "acquisition_date"),
    ],
)
def test_labels_that_are_not_what_they_should_be_are_named(tmp_path, meta, told):
    archive = make_archive(tmp_path / "a", 3)
    name = sorted(p.name for p in archive.iterdir())[0]
    path = archive / name / f"{name}_labels_metadata.json"
    if meta is None:
        path.unlink()
    else:
        path.write_text(meta if isinstance(meta, str) else json.dumps(json.loads(path.read_text()) | meta))
    store, said = ingest(archive, tmp_path / "s")
    (line,) = [s for s in said if s.startswith("rejected: ")]
    assert str(path.relative_to(archive)) in line and told in line, line
    assert len(store) == 2


def test_archives_that_are_none(tmp_path):
    with pytest.raises(ArchiveError, match="no such folder"):
        ingest(tmp_path / "absent", tmp_path / "s")
    (tmp_path / "a").mkdir()
    with pytest.raises(ArchiveError, match="holds no folders"):
        ingest(tmp_path / "a", tmp_path / "s")
    (tmp_path / "a" / "readme").mkdir()
    with pytest.raises(ArchiveError, match="none of its patches can be used"):
        ingest(tmp_path / "a", tmp_path / "s")


def test_an_archive_whose_every_raster_is_torn_makes_no_store(tmp_path):
    archive = make_archive(tmp_path / "a", 2)
    for path in archive.glob("*/*_B02.tif"):
        break_band(path, "torn")
    with pytest.raises(ArchiveError, match="none of its patches can be used"):
        ingest(archive, tmp_path / "s")


def test_a_mended_patch_gets_in(tmp_path):
    """`strict` says "mend the archive": then the patch must be read again."""
    archive = make_archive(tmp_path / "a", 6)
    name = sorted(p.name for p in archive.iterdir())[1]
    path = archive / name / f"{name}_B11.tif"
    whole = path.read_bytes()
    break_band(path, "torn")
    with pytest.raises(ArchiveError, match="1 rejected, and strict is set"):
        ingest(archive, tmp_path / "s", strict=True, patches_per_shard=3)
    path.write_bytes(whole)
    store, _ = ingest(archive, tmp_path / "s", strict=True, patches_per_shard=3)
    assert name in store.column("id") and len(store) == 6
    assert content(tmp_path / "s") == content(ingest(archive, tmp_path / "t", patches_per_shard=3)[0].folder)


# ---- the same bytes


def test_workers_do_not_matter(tiny_archive, tmp_path):
    one, _ = ingest(tiny_archive, tmp_path / "one", patches_per_shard=5)
    three, _ = ingest(tiny_archive, tmp_path / "three", patches_per_shard=5, workers=3)
    assert content(one.folder) == content(three.folder) and one.digest == three.digest


def test_a_second_ingest_changes_nothing_and_reads_no_pixels(tiny_archive, tmp_path):
    store, _ = ingest(tiny_archive, tmp_path / "s")
    before = content(store.folder)
    times = {p: p.stat().st_mtime_ns for p in store.paths}
    ingest(tiny_archive, tmp_path / "s")
    assert content(store.folder) == before and times == {p: p.stat().st_mtime_ns for p in store.paths}


def test_another_recipe_does_not_mix_into_a_store(tiny_archive, tmp_path):
    ingest(tiny_archive, tmp_path / "s")
    with pytest.raises(StoreError, match="was made from another archive, recipe or version"):
        ingest(tiny_archive, tmp_path / "s", split=SplitRecipe(block_m=1200, val=0.3))


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(tiny_archive, tmp_path):
    undisturbed, _ = ingest(tiny_archive, tmp_path / "whole", patches_per_shard=2)
    folder = tmp_path / "killed"
    recipe = tmp_path / "i.yaml"
    split = "{block_m: 1200, val: 0.25, test: 0.25, stratify: false}"
    recipe.write_text(f"{{archive: {tiny_archive}, store: {folder}, patches_per_shard: 2, workers: 2, split: {split}}}")
    process = subprocess.Popen([*JEOPARDA, "ingest", str(recipe)], env=environment(), start_new_session=True)
    try:
        until = time.monotonic() + 60
        while len(list(folder.glob("shards/[0-9]*.h5"))) < 3:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = len(list(folder.glob("shards/[0-9]*.h5")))
    assert 3 <= done < 24 and not (folder / "store.json").exists()
    with pytest.raises(StoreError, match="run it again, it goes on where it stopped"):
        Store(folder)
    (folder / "shards" / f".00020.h5.{socket.gethostname()}.4194303.part").write_bytes(
        b"half"
    )  # what a writer killed in the middle leaves
    ingest(tiny_archive, folder, patches_per_shard=2)
    assert content(folder) == content(undisturbed.folder)


def test_archive_moved_elsewhere_goes_on(tmp_path):
    """Scratch is purged and archives move: what is done stays done."""
    archive = make_archive(tmp_path / "a", 4)
    ingest(archive, tmp_path / "s", patches_per_shard=2)
    moved = shutil.move(archive, tmp_path / "b")
    (tmp_path / "s" / "store.json").unlink()
    (tmp_path / "s" / "shards" / "00001.h5").unlink()
    store, _ = ingest(Path(moved), tmp_path / "s", patches_per_shard=2)
    assert len(store) == 4 and verify(store.folder, 1) == []


def test_names_of_the_tiny_archive_are_classes():
    assert set(NAMES) <= set(nomenclature("bigearthnet-43").classes)
