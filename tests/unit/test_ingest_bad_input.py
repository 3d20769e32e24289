"""Bad input, whatever it is: a line in rejects.csv that says file, reason and what was expected; nothing else lost."""

import csv
import json
import os
import random
import re
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml

from jeoparda.config import check
from jeoparda.errors import ArchiveError
from jeoparda.ingest import IngestRecipe, run
from jeoparda.ingest.upkeep import repair, verify
from jeoparda.store import Store
from tests.archive import make_archive
from tests.scenes import numbers, safe
from tests.unit import test_ingest_chips as chips
from tests.unit import test_ingest_scenes as scenes
from tests.unit.test_ingest import break_band, content, relabel
from tests.unit.test_ingest_bigearthnet import tar_of
from tests.unit.test_scene_files import stack
from tests.unit.test_upkeep import flip

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
COLUMNS = ["id", "file", "reason", "expected", "kind"]
NO_RASTER = "cannot be read as a raster: "
NOWHERE = "/nowhere/at/all"


def ingest(given: dict, store: Path, **more) -> tuple[Store, list[str]]:
    """The store, and what was said while making it."""
    said: list[str] = []
    base = {"store": store, "workers": 1, "patches_per_shard": 4}
    run(check(IngestRecipe, {**base, **given, **more}), said.append)
    return Store(store), said


def rejects(store: Store) -> dict[str, dict[str, str]]:
    """rejects.csv by id."""
    with open(store.folder / "rejects.csv", newline="") as f:
        table = csv.DictReader(f)
        rows = list(table)
    assert table.fieldnames == COLUMNS and len({r["id"] for r in rows}) == len(rows)
    return {r["id"]: r for r in rows}


def told(store: Store, expected: dict[str, tuple[str, str, str]]) -> None:
    """rejects.csv has these and no others: id -> (file, what the reason is or begins with, what was expected)."""
    found = rejects(store)
    assert sorted(found) == sorted(expected)
    for name, (file, reason, wanted) in expected.items():
        row = found[name]
        assert (row["file"], row["expected"], row["kind"]) == (file, wanted, "fault"), row
        assert row["reason"].startswith(reason), row
        assert not re.search(r"/tmp|/root|/home|Traceback|0x[0-9a-f]{8}", row["reason"]), row


def instead(path: Path, what: str) -> None:
    """Something else in a file's place."""
    path.unlink()
    path.symlink_to(NOWHERE) if what == "link" else path.mkdir()


def same_but_for(store: Store, whole: Store, gone: Iterable[str]) -> None:
    """Every patch of the whole store but those of `gone`, to the last byte."""

    def held(s: Store) -> dict[str, tuple[bytes, bytes]]:
        return {str(i): (s.patch(n).tobytes(), s.labels[n].tobytes()) for n, i in enumerate(s.column("id"))}

    expected = held(whole)
    for name in gone:
        del expected[name]
    assert held(store) == expected


def strict_exits_1(cli, given: dict, folder: Path, count: str) -> None:
    (folder / "r.yaml").write_text(yaml.safe_dump({"store": str(folder / "strict"), "workers": 1} | given))
    done = cli("ingest", folder / "r.yaml", "strict=true")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"jeoparda: {count} rejected, and strict is set; mend the archive or set strict=false" in done.stderr
    assert "rejected: " in done.stdout and not (folder / "strict" / "store.json").exists()


# ---- BigEarthNet v1


def break_v1(archive: Path) -> dict[str, tuple[str, str, str]]:
    """Another fault in each of the first twelve patches. What rejects.csv is to say of them."""
    names = sorted(p.name for p in archive.iterdir())
    json_of = [archive / n / f"{n}_labels_metadata.json" for n in names]

    def band(i: int, name: str) -> Path:
        return archive / names[i] / f"{names[i]}_{name}.tif"

    def grid(crs: str, pixel: int, side: int, rows: int, i: int) -> str:
        meta = json.loads(json_of[i].read_text())["coordinates"]
        place = (float(pixel), 0.0, float(meta["ulx"]), 0.0, -float(pixel), float(meta["uly"]))
        return f"(({rows}, {side}), 'uint16', '{crs}', {place})"

    found = "(shape, type, CRS, transform) is "
    tif, labels = "a GeoTIFF of one band of the patch", "the file as published"
    instead(band(0, "B02"), "folder")
    instead(band(1, "B02"), "link")
    break_band(band(2, "B03"), "torn")
    band(3, "B8A").write_bytes(b"")
    break_band(band(4, "B11"), "CRS")
    relabel(archive, 5, ["Pastures", "Moon dust"])
    break_band(band(6, "B09"), "shape")
    json_of[7].write_text('{"labels": ["Pastures",]}')
    band(8, "B12").unlink()
    json_of[9].write_bytes(b"")
    json_of[10].unlink()
    json_of[11].write_text(json_of[11].read_text().replace('"ulx"', '"x"'))
    rows = [
        (band(0, "B02"), f"{NO_RASTER}'", tif),
        (band(1, "B02"), "missing", tif),
        (band(2, "B03"), f"{NO_RASTER}{names[2]}_B03.tif, band 1: IReadBlock failed at", tif),
        (band(3, "B8A"), f"{NO_RASTER}it is empty", tif),
        (band(4, "B11"), found + grid("EPSG:32632", 20, 60, 60, 4), grid("EPSG:32633", 20, 60, 60, 4)),
        (json_of[5], "label 'Moon dust' is no CORINE level-3 class", "the classes' published names"),
        (band(6, "B09"), found + grid("EPSG:32633", 60, 20, 19, 6), grid("EPSG:32633", 60, 20, 20, 6)),
        (json_of[7], "not valid JSON at line 1: ", labels),
        (band(8, "B12"), "missing", tif),
        (json_of[9], "not valid JSON at line 1: Expecting value", labels),
        (json_of[10], "missing", "the patch's labels and coordinates"),
        (json_of[11], "KeyError('ulx')", "labels, coordinates, projection and acquisition_date"),
    ]
    return {n: (str(p.relative_to(archive)), *more) for n, (p, *more) in zip(names, rows, strict=False)}


@pytest.fixture(scope="module")
def v1(tmp_path_factory) -> tuple[dict, Store]:
    """Recipe and store of a sound archive of 16 patches, whatever its split."""
    folder = tmp_path_factory.mktemp("v1")
    archive = make_archive(folder / "archive", 16)
    given = {"archive": str(archive), "split": {"by": "none"}}
    return given, ingest(given, folder / "store")[0]


@pytest.fixture
def broken_v1(v1, tmp_path) -> tuple[dict, dict[str, tuple[str, str, str]]]:
    archive = Path(shutil.copytree(v1[0]["archive"], tmp_path / "archive"))
    return v1[0] | {"archive": str(archive)}, break_v1(archive)


def test_v1_every_fault_is_a_line_and_costs_its_patch_alone(v1, broken_v1, tmp_path):
    given, expected = broken_v1
    store, said = ingest(given, tmp_path / "s")
    told(store, expected)
    same_but_for(store, v1[1], expected)
    assert sum(s.startswith("rejected: ") for s in said) == 12
    assert f"{store.folder}: 4 patches (train 4, val 0, test 0) in 3 shards; 12 rejected" in said
    assert verify(store.folder, 1) == []


def test_v1_strict_exits_1_and_names_what_the_plan_rejects(cli, broken_v1, tmp_path):
    strict_exits_1(cli, broken_v1[0], tmp_path, "5")


def test_v1_with_faults_is_the_same_by_two_processes_and_is_mended_beside_them(broken_v1, tmp_path):
    given, _ = broken_v1
    store, _ = ingest(given, tmp_path / "s")
    truth = content(store.folder)
    assert content(ingest(given, tmp_path / "t", workers=2)[0].folder) == truth
    flip(store.paths[store.shard_of[2]], int(store.offset_of[2]) + 5, 1)
    assert repair(store.folder, count=1, say=lambda _: None) == 1
    assert content(store.folder) == truth


def test_v1_a_json_too_deep_costs_its_patch(v1, tmp_path):
    archive = Path(shutil.copytree(v1[0]["archive"], tmp_path / "archive"))
    name = min(p.name for p in archive.iterdir())
    (archive / name / f"{name}_labels_metadata.json").write_text("[" * 100_000)
    store, _ = ingest(v1[0] | {"archive": archive}, tmp_path / "s")
    assert [*rejects(store)] == [name] and len(store) == 15


# ---- tar files


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> tuple[Path, Store]:
    """A folder of three patches as .tar, .tar.gz and .tar.zst beside it; and its store."""
    folder = tmp_path_factory.mktemp("tars")
    archive = make_archive(folder / "a", 3)
    for name in ("a.tar.gz", "a.tar.zst", "a.tar"):  # .zst is packed by way of .tar
        tar_of(archive, folder / name)
    return folder, ingest({"archive": archive, "split": {"by": "none"}}, folder / "store")[0]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.zst"])
def test_a_bit_flipped_anywhere_in_a_packed_tar_never_reaches_a_store(tars, name, tmp_path):
    """Their own checksums stand at the end of the stream, so it has to be read to there."""
    raw, rng = (tars[0] / name).read_bytes(), random.Random(0)
    for trial in range(25):
        damaged = bytearray(raw)
        damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ArchiveError, match=re.escape(str(tmp_path / name))):
            ingest({"archive": tmp_path / name, "split": {"by": "none"}}, tmp_path / "s")
        assert not list((tmp_path / "s").glob("shards/*")), f"flip {trial}"


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.zst", "a.tar"])
def test_a_tar_cut_short_is_told_and_its_whole_patches_can_be_had(tars, name, cli, tmp_path):
    raw = (tars[0] / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) * 5 // 6])
    given = {"archive": str(tmp_path / name), "split": {"by": "none"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(given | {"store": str(tmp_path / "s"), "workers": 1}))
    if name == "a.tar":
        done = cli("ingest", tmp_path / "r.yaml")
        assert done.returncode == 1 and "ends too early, at byte" in done.stderr and "Traceback" not in done.stderr
        assert "resume the download, or take what is whole with truncated=keep" in done.stderr
    store, said = ingest(given, tmp_path / "s", bigearthnet={"truncated": "keep"})
    last = sorted(str(i) for i in tars[1].column("id"))[2]
    same_but_for(store, tars[1], [last])
    found = rejects(store)
    assert sorted(found) == sorted([last, name])
    assert found[name]["reason"].startswith("ends too early, at byte") and found[name]["file"] == name
    assert found[name]["expected"] == "the whole tar; patches beyond its end are not in the store"
    assert re.fullmatch(r"missing( \(and \d+ more of its files\))?", found[last]["reason"])
    assert any("2 patches" in s and "2 rejected" in s for s in said)


@pytest.mark.parametrize("folder", ["a", "b"])
def test_a_patch_twice_in_a_tar_is_told_and_the_first_one_taken(tars, folder, tmp_path):
    """Whether under the same name or another; its labels and its pixels are both of the first."""
    first, other = tars[0] / "a", make_archive(tmp_path / "other", 3, seed=5)
    name = sorted(p.name for p in first.iterdir())[1]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in sorted(f for f in first.rglob("*") if f.is_file()):
            tar.add(file, f"a/{file.relative_to(first)}")
        for file in sorted((other / name).iterdir()):
            tar.add(file, f"{folder}/{name}/{file.name}")
    store, _ = ingest({"archive": tmp_path / "a.tar", "split": {"by": "none"}}, tmp_path / "s", patches_per_shard=1)
    told(store, {name: (f"{folder}/{name}", f"patch id {name!r} is there twice", f"only a/{name}")})
    same_but_for(store, tars[1], [])


@pytest.mark.parametrize("what", [b"", b"<html>404 not found</html>" * 99])
def test_what_is_no_tar_at_all_is_told(what, cli, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(what)
    (tmp_path / "r.yaml").write_text(f"archive: {tmp_path}/a.tar.gz\nstore: {tmp_path}/s\n")
    done = cli("ingest", tmp_path / "r.yaml", "workers=1")
    assert done.returncode == 1 and "Traceback" not in done.stderr and f"{tmp_path}/a.tar.gz: " in done.stderr


# ---- scenes

LABELS = {"path": "labels/{scene}.tif", "remap": {1: "soy", 2: "maize", 3: "ignore", 4: "forest"}}
CUT = {"scene": {"kind": "folder", "pattern": scenes.PATTERN}, "labels": LABELS, "patch_px": 32}
FOLDER = {"source": "scenes", "scenes": CUT, "split": {"by": "none"}}


def break_scenes(archive: Path) -> dict[str, tuple[str, str, str]]:
    """Scenes s11 to s21 each have a fault of their own. What rejects.csv is to say of them."""
    bands, labels = scenes.truth(100, 140)

    def band(i: int, name: str = "B2") -> Path:
        return archive / f"s{i}_{name}.tif"

    instead(band(11), "folder")
    instead(band(12), "link")
    band(13).write_bytes(b"")
    scenes.write(band(14), bands["B2"], crs="EPSG:32723", nodata=0)
    scenes.write(band(15), bands["B2"][:90], nodata=0)
    labels[50, 60] = 9
    scenes.write(archive / "labels" / "s16.tif", labels)
    band(17, "B3").unlink()
    band(18, "B3").write_bytes(band(18, "B3").read_bytes()[:2000])
    (archive / "labels" / "s19.tif").write_bytes(b"")
    instead(archive / "labels" / "s20.tif", "link")
    scenes.write(band(21), bands["B2"].astype(np.float32), nodata=0)
    can = "a scene that can be read"
    corners = (
        "the same CRS and corners (left, top, right, bottom), pixel sizes that are whole multiples; align: resample "
        "takes it onto the finest band's grid"
    )
    known = "one of 1, 2, 3, 4; add it to labels.remap as a class or as ignore, or set labels.unlisted"
    return {
        "s11": ("s11_B2.tif", f"{NO_RASTER}'s11_B2.tif' not recognized", can),
        "s12": ("s12_B2.tif", f"{NO_RASTER}{NOWHERE}: No such file or directory", can),
        "s13": ("s13_B2.tif", f"{NO_RASTER}it is empty", can),
        "s14": ("s14_B2.tif", "band B2 covers ('EPSG:32723', ", corners),
        "s15": ("s15_B2.tif", "band B2 covers ('EPSG:32722', 300000.0, 7000000.0, 301400.0, 6999100.0), ", corners),
        "s16": ("labels/s16.tif", "unknown class value '9'", known),
        "s17": ("s17", "lacks B3", "B1, B2, B3, as the first scene has"),
        "s18": ("s18_B3.tif", "cannot be read at (row, col) = (0, 0): s18_B3.tif, band 1: ", can),
        "s19": ("labels/s19.tif", f"{NO_RASTER}it is empty", "a label raster that can be read"),
        "s20": ("labels/s20.tif", "is missing", "the labels of scene s20, as labels.path says"),
        "s21": ("s21", "B1, B2 in float32", "uint16, as in the first scene"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[dict, Store, dict]:
    """Recipe, store of all 14 scenes while they were sound, and what is to be said now that 11 are not."""
    where = tmp_path_factory.mktemp("scenes")
    for i in range(10, 24):
        scenes.make(where / "archive", f"s{i}", seed=i)
    given = FOLDER | {"archive": str(where / "archive")}
    whole = ingest(given, where / "store")[0]
    return given, whole, break_scenes(where / "archive")


def test_scenes_every_fault_is_a_line_and_costs_its_scene_alone(folder, tmp_path):
    given, whole, expected = folder
    store, said = ingest(given, tmp_path / "s")
    told(store, expected)
    same_but_for(store, whole, [i for i in map(str, whole.column("id")) if i.partition("_")[0] in expected])
    assert sum(s.startswith("rejected: ") for s in said) == 11
    assert f"{store.folder}: 36 patches (train 36, val 0, test 0) in 9 shards; 11 rejected" in said
    assert verify(store.folder, 1) == []


def test_scenes_strict_exits_1(folder, cli, tmp_path):
    strict_exits_1(cli, folder[0], tmp_path, "11")


def test_two_scenes_of_one_name_are_both_there(tmp_path):
    for i, name in enumerate("pq"):
        (tmp_path / "a" / name).mkdir(parents=True)
        stack(tmp_path / "a" / name / "x.tif", np.stack([numbers(20, 30, 3 * i + k) for k in range(3)]))
    cut = {"patch_px": 10, "scene": {"kind": "stack"}}
    given = {"archive": tmp_path / "a", "source": "scenes", "scenes": cut, "split": {"by": "none"}}
    store, _ = ingest(given, tmp_path / "s")
    told(store, {})
    assert store.column("id").tolist() == [f"{n}/x.tif_{r}_{c}" for n in "pq" for r in (0, 10) for c in (0, 10, 20)]
    for number, seed in ((3, 0), (9, 3)):
        assert (store.patch(number)[0][0] == numbers(20, 30, seed)[10:20, :10]).all()


def test_safe_products_incomplete_in_every_way(tmp_path):
    """A band or the scene classification gone, empty, a link to nowhere; metadata that are no XML."""
    tiles = [f"T33UU{c}" for c in "ABCDEFGH"]
    for tile in tiles:
        safe(tmp_path / "a", "L2A", "05.09", -1000, tile=tile)

    def file(tile: int, part: str) -> Path:
        (found,) = (tmp_path / "a").glob(f"*{tiles[tile]}*/**/*{part}")
        return found

    product = file(1, "MTD_MSIL2A.xml").parent.name
    file(1, "B03_10m.jp2").unlink()
    file(2, "B03_10m.jp2").write_bytes(b"")
    file(3, "SCL_20m.jp2").unlink()
    file(4, "MTD_MSIL2A.xml").write_text("<xml")
    file(5, "MTD_MSIL2A.xml").write_bytes(b"")
    instead(file(6, "B8A_20m.jp2"), "link")
    images = "GRANULE/L2A_{0}_A041640_20230613T101028/IMG_DATA/R{1}m/{0}_20230613T101031_{2}_{1}m.jp2"
    can, metadata = "a scene that can be read", "cannot be read as a product's metadata: "
    rows = {
        1: ("", "no raster for band B03; found B01, B02, B04, "),
        2: (f"/{images.format(tiles[2], 10, 'B03')}", f"{NO_RASTER}it is empty"),
        3: ("/MTD_MSIL2A.xml", f"lists the mask {images.format(tiles[3], 20, 'SCL')}, and it is missing; get it"),
        4: ("/MTD_MSIL2A.xml", f"{metadata}unclosed token: line 1"),
        5: ("/MTD_MSIL2A.xml", f"{metadata}no element found: line 1"),
        6: (f"/{images.format(tiles[6], 20, 'B8A')}", f"{NO_RASTER}{NOWHERE}: No such file"),
    }
    expected = {}
    for i, (path, reason) in rows.items():
        name = product.replace(tiles[1], tiles[i])
        expected[name] = (f"{name}{path}", reason, can)
    cut = {"patch_px": 24, "min_valid": 0.1}
    given = {"archive": tmp_path / "a", "source": "scenes", "scenes": cut, "split": {"by": "none"}}
    store, _ = ingest(given, tmp_path / "s")
    told(store, expected)
    assert {*store.column("source").tolist()} == {product.replace(tiles[1], t) for t in (tiles[0], tiles[7])}


def test_a_real_jp2_cut_short_costs_the_patches_beyond_the_cut(real_scene, tmp_path):
    """In a band that the plan does not look at: what of it can be decoded is kept, or not, patch by patch."""
    for name in ("a", "b"):
        shutil.copytree(real_scene, tmp_path / "a" / name)
    for path in [*(tmp_path / "a" / "b").iterdir()]:
        path.rename(path.with_name(path.name.replace("20170216", "20170217")))  # a scene of its own
    (file,) = (tmp_path / "a" / "b").glob("*_B11.jp2")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    given = {"archive": tmp_path / "a", "source": "scenes", "scenes": {"patch_px": 240}, "split": {"by": "none"}}
    store, said = ingest(given, tmp_path / "s", patches_per_shard=16)
    found = rejects(store)
    assert found and all(r["file"] == f"b/{file.name}" and "cannot be read" in r["reason"] for r in found.values())
    assert all(r["expected"] == "a scene that can be read" and r["kind"] == "fault" for r in found.values())
    kept = [str(i) for i, s in zip(store.column("id"), store.column("source"), strict=True) if s == "b"]
    assert (store.column("source") == "a").sum() == len(found) + len(kept)
    assert any(f"{len(found)} rejected" in s for s in said)
    for name in kept:  # what is kept is what the whole file has
        one, other = (store.column("id").tolist().index(n) for n in (name, name.replace("20170217", "20170216")))
        assert store.patch(one).tobytes() == store.patch(other).tobytes()


# ---- chips

CHIPS = {"source": "chips"}


def break_chips(archive: Path) -> dict[str, tuple[str, str, str]]:
    beach = archive / "beach"
    (beach / "beach00.tif").write_bytes(b"")
    (beach / "beach01.tif").write_bytes((beach / "beach01.tif").read_bytes()[:300])
    chips.write(beach / "beach02.tif", chips.rgb(1)[:, :15])
    chips.write(beach / "beach03.tif", chips.rgb(1)[:2])
    (beach / "beach04.tif").write_text("<html>404 not found</html>")
    chips.write(beach / "beach05.tif", chips.rgb(1).astype(np.uint16))
    kind, first = "(rows, columns, bands, type) is ", "(16, 16, 3, 'uint8'), as the first chip has"
    rows = [
        (f"{NO_RASTER}it is empty", "an image"),
        ("cannot be read at (row, col) = (0, 0): beach01.tif, band 1: ", "an image"),
        (f"{kind}(15, 16, 3, 'uint8')", first),
        (f"{kind}(16, 16, 2, 'uint8')", first),
        (f"{NO_RASTER}'beach/beach04.tif' not recognized", "an image"),
        (f"{kind}(16, 16, 3, 'uint16')", first),
    ]
    return {f"beach/beach{i:02d}.tif": (f"beach/beach{i:02d}.tif", *row) for i, row in enumerate(rows)}


def test_chips_every_fault_is_a_line_and_costs_its_chip_alone(cli, tmp_path):
    archive = chips.collection(tmp_path / "a", ".tif", 8)
    given = CHIPS | {"archive": str(archive)}
    whole, _ = ingest(given, tmp_path / "whole")
    expected = break_chips(archive)
    store, said = ingest(given, tmp_path / "s")
    told(store, expected)
    same_but_for(store, whole, expected)
    assert any("18 patches" in s and "6 rejected" in s for s in said)
    assert verify(store.folder, 1) == []
    strict_exits_1(cli, given, tmp_path, "5")  # the sixth shows only when its pixels are read


# ---- what is there by name alone


def test_links_to_nowhere_are_told_v1(v1, tmp_path):
    archive = Path(shutil.copytree(v1[0]["archive"], tmp_path / "archive"))
    name = "S2A_MSIL2A_20170613T101031_9_9"
    (archive / name).symlink_to(NOWHERE)
    store, _ = ingest(v1[0] | {"archive": archive}, tmp_path / "s")
    assert [*rejects(store)] == [name] and len(store) == 16


@pytest.mark.parametrize("what", ["link", "folder"])
def test_links_to_nowhere_are_told_chips(what, tmp_path):
    archive = chips.collection(tmp_path / "a", ".tif", 4)
    instead(archive / "beach" / "beach02.tif", what)
    store, _ = ingest(CHIPS | {"archive": archive}, tmp_path / "s")
    assert [*rejects(store)] == ["beach/beach02.tif"] and len(store) == 11


@pytest.mark.parametrize("source", ["v1", "chips"])
def test_a_name_that_is_not_utf_8_costs_its_patch(v1, source, tmp_path):
    """As on shares of the nineties: Latin-1."""
    if source == "v1":
        given = v1[0] | {"archive": shutil.copytree(v1[0]["archive"], tmp_path / "a")}
        path = min((tmp_path / "a").iterdir())
    else:
        given = CHIPS | {"archive": chips.collection(tmp_path / "a", ".tif", 4)}
        path = tmp_path / "a" / "beach" / "beach02.tif"
    os.rename(path, os.fsencode(path.parent) + b"/praia-\xe7\xe3o" + os.fsencode(path.suffix))
    store, _ = ingest(given, tmp_path / "s")
    assert len(rejects(store)) == 1 and len(store) == (15 if source == "v1" else 11)


@pytest.mark.parametrize("date", ["yesterday", "13/06/2017", "9" * 5000, "2017-06-13\0 10:00"])
def test_a_date_that_is_none_costs_its_patch(v1, date, tmp_path):
    archive = Path(shutil.copytree(v1[0]["archive"], tmp_path / "archive"))
    name = min(p.name for p in archive.iterdir())
    path = archive / name / f"{name}_labels_metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"acquisition_date": date}))
    store, _ = ingest(v1[0] | {"archive": archive}, tmp_path / "s")
    assert [*rejects(store)] == [name] and len(store) == 15


def test_every_reject_says_what_was_expected(broken_v1, tmp_path):
    store, _ = ingest(broken_v1[0], tmp_path / "s")
    assert [i for i, row in rejects(store).items() if not row["expected"]] == []
