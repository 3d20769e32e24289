"""Compressed stores: the same records, in whoever's hands; the same bytes, whoever writes; and every damage mended."""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from jeoparda.errors import RecipeError, StoreError
from jeoparda.feed import FeedRecipe
from jeoparda.ingest import IngestRecipe, SplitRecipe, finalise, init, load, run
from jeoparda.ingest.recipe import identity
from jeoparda.ingest.upkeep import repair, statistics, verify
from jeoparda.report.store import describe_store
from jeoparda.store import Contents, PatchRecord, Store, StoreInfo, crc32, decoded, finished, write_shard
from jeoparda.store import finalise as add_up
from jeoparda.store.codec import _blosc, _hdf5plugin, encoded
from tests.archive import make_archive
from tests.unit.test_feed import same_from_copies
from tests.unit.test_ingest import content
from tests.unit.test_store import CLASSES, COLORS, CONTENTS, LAYOUTS, made, patch
from tests.unit.test_upkeep import flip, made_again, ways_to_go

CODECS = ("lz4", "zstd")
SPLIT = SplitRecipe(block_m=1200, val=0.25, test=0.25)


def smooth(nbytes: int, seed: int = 0) -> np.ndarray:
    """(nbytes / 2,) uint16 like a band of an image: neighbours are alike, the last bits are noise."""
    rng = np.random.default_rng(seed)
    return (1000 + rng.normal(0, 8, nbytes // 2).cumsum() % 800).astype(np.uint16)


@pytest.fixture(scope="module", params=CODECS)
def codec(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("compressed") / "archive", 7)


def recipe(archive: Path, store: Path, compression: str, workers: int = 1) -> IngestRecipe:
    given = {"patches_per_shard": 3, "split": SPLIT, "workers": workers, "compression": compression}
    return IngestRecipe(archive=archive, store=store, **given)


@pytest.fixture(scope="module")
def plain(archive, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("plain") / "store"
    run(recipe(archive, store, "none"), lambda _: None)
    return store


@pytest.fixture(scope="module")
def whole(archive, codec, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp(codec) / "store"
    run(recipe(archive, store, codec), lambda _: None)
    return store


@pytest.fixture
def store(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


# ---- the same store


def test_it_holds_what_the_plain_one_holds_in_fewer_bytes(whole, plain, codec):
    packed, flat = Store(whole), Store(plain)
    assert (packed.info.compression, packed.info.version) == (codec, 3)
    assert (flat.info.compression, flat.info.version) == ("none", 2)
    assert (flat.size_of == flat.info.record_bytes).all() and (packed.size_of < packed.info.record_bytes * 0.8).all()
    assert packed.info.record_bytes == flat.info.record_bytes
    for i in range(len(flat)):
        assert packed.patch(i).tobytes() == flat.patch(i).tobytes()
        assert packed.checksums[i] == zlib.crc32(flat.patch(i).tobytes())  # of the decoded record
    for column in ("labels", "shard_of", "checksums"):
        np.testing.assert_array_equal(getattr(packed, column), getattr(flat, column))
    assert packed.info.statistics == flat.info.statistics
    assert statistics(whole, 1) == (flat.info.statistics, True)
    assert verify(whole, 1) == []
    ratio = 7 * flat.info.record_bytes / packed.size_of.sum()
    assert f", compression {codec}, {ratio:.2f} times smaller" in describe_store(packed)
    assert ", compression none\n" in describe_store(flat)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_reads_back(tmp_path, name, codec):
    """Also pixels of 1 and 4 bytes, and records of a few hundred bytes, several to a block of HDF5's."""
    layout = LAYOUTS[name]
    contents = Contents("generic", "digital number", (), layout, "three", CLASSES, COLORS, "mask")
    place = (10.0, 0.0, 0.0, 0.0, -10.0, 0.0)

    def row(i: int):
        return PatchRecord(f"p{i}", "s", "", place, "", "", "train", 1.0, ("",) * layout.dates), made(layout, i), (0,)

    parts = (range(40), range(40, 41), range(0))  # the last: all of its patches were rejected
    shards = [write_shard(tmp_path, n, "p", contents, map(row, part), 40, codec) for n, part in enumerate(parts)]
    add_up(tmp_path, shards, contents, [], {}, {}, "0", codec)
    store = Store(tmp_path)
    assert len(store) == 41
    for i in range(41):
        for field, expected in made(layout, i).items():
            np.testing.assert_array_equal(store.patch(i)[field], expected)
    assert [finished(tmp_path, n, "p") for n in range(3)] == shards
    assert verify_shards(tmp_path) == []


def verify_shards(folder: Path) -> list[str]:
    from jeoparda.store import damaged

    info = StoreInfo.read(folder)
    found = (damaged(folder, info.layout, s, n, info.compression) for n, s in enumerate(info.shards))
    return [str(d) for d in found if d]


def test_a_store_json_from_before_reads_as_not_compressed(plain, tmp_path):
    import hashlib

    old = Path(shutil.copytree(plain, tmp_path / "old"))
    data = json.loads((old / "store.json").read_text())
    del data["compression"], data["sha256"]
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    data["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (old / "store.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    assert StoreInfo.read(old) == StoreInfo.read(plain) and verify(old, 1) == []


def test_the_recipe_decides_and_plans_from_before_keep_their_digests(archive, tmp_path, codec):
    r = recipe(archive, tmp_path / "s", codec)
    assert identity(r)["compression"] == codec
    assert "compression" not in identity(dataclasses.replace(r, compression="none"))
    init(r, lambda _: None)
    other = dataclasses.replace(r, compression="none")
    with pytest.raises(RecipeError, match=r"made by another recipe \(compression differ\)"):
        load(other, 1, 1, lambda _: None)
    load(r, 1, 1, lambda _: None)
    with pytest.raises(StoreError, match="another archive, recipe or version"):
        init(other, lambda _: None)


# ---- the same bytes


def test_the_same_bytes_by_two_workers_and_in_another_order(archive, whole, codec, tmp_path):
    run(recipe(archive, tmp_path / "two", codec, workers=2), lambda _: None)
    assert content(tmp_path / "two") == content(whole)
    r = recipe(archive, tmp_path / "parts", codec)
    init(r, lambda _: None)
    for part in (3, 1, 2):
        load(r, part, 3, lambda _: None)
    finalise(r, lambda _: None)
    assert content(tmp_path / "parts") == content(whole)


SHARD = """
import sys
{first}
from pathlib import Path
from jeoparda.store import write_shard
from tests.unit.test_store import CONTENTS, patch
print(write_shard(Path(sys.argv[1]), 0, "p", CONTENTS, [patch(i) for i in range(3)], 3, sys.argv[2]).info.sha256)
"""


def test_the_same_bytes_whatever_else_the_process_does(tmp_path, codec, monkeypatch):
    """HDF5 writes a filter's name into the file if it knows it, and c-blosc may be told much by the environment."""
    import hdf5plugin

    write = [write_shard(tmp_path / "here", 0, "p", CONTENTS, [patch(i) for i in range(3)], 3, codec).info.sha256]
    with ThreadPoolExecutor(4) as pool:
        work = [(tmp_path / f"thread{k}", 0, "p", CONTENTS, [patch(i) for i in range(3)], 3, codec) for k in range(4)]
        write += [shard.info.sha256 for shard in pool.map(lambda w: write_shard(*w), work)]
    told = {"BLOSC_CLEVEL": "1", "BLOSC_SHUFFLE": "NOSHUFFLE", "BLOSC_NTHREADS": "4", "BLOSC_TYPESIZE": "8"}
    for first, more in (
        ("import hdf5plugin", {}),
        ("import numcodecs", told),
        ("", {"HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH}),
    ):
        command = [sys.executable, "-c", SHARD.format(first=first), tmp_path / "other", codec]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more)
        assert done.returncode == 0, done.stderr
        write.append(done.stdout.strip())
    assert len(set(write)) == 1


# ---- strangers

SCRIPT = """
import sys, zlib
import h5py, hdf5plugin
with h5py.File(sys.argv[1]) as f:
    patches = f["patches"]
    assert patches.chunks == (1,) and [zlib.crc32(r.tobytes()) for r in patches[:]] == f["checksums"][:].tolist()
    print(patches["10m"][1, 2, 3, :8].tolist(), f["table"]["id"][1].decode())
assert not {"jeoparda", "numcodecs"} & set(sys.modules)
"""


def test_h5py_with_hdf5plugin_alone_reads_it(whole):
    path, opened = Store(whole).paths[0], Store(whole)
    done = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True)
    assert done.stdout == f"{opened.patch(1)['10m'][2, 3, :8].tolist()} {opened.column('id')[1]}\n", done.stderr


@pytest.mark.needs("h5ls")
def test_hdf5_s_own_tools_show_it(whole):
    import hdf5plugin

    opened = Store(whole)
    told = subprocess.run(["h5ls", "-v", f"{opened.paths[0]}/patches"], capture_output=True, text=True, check=True)
    assert "Filter-0:  blosc-32001" in told.stdout and re.search(r'"10m" +\+0 +\[4,120,120\]', told.stdout)
    command = ["h5dump", "-d", "/patches", "-s", "1", "-c", "1", "-y", "-w", "0", opened.paths[0]]
    env = os.environ | {"HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH}
    dumped = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, check=True).stdout
    numbers = re.findall(r"\d+", dumped[dumped.index("DATA {") : dumped.index("ATTRIBUTE")])
    fields = [opened.patch(1)[name].ravel() for name in opened.dtype.names]
    assert [int(n) for n in numbers] == np.concatenate(fields).tolist()


# ---- frames


def test_checksums_are_zlib_s():
    data = smooth(100_000).tobytes()
    for cut in (0, 1, 63, 5121, len(data)):
        assert crc32(data[cut:], crc32(data[:cut])) == zlib.crc32(data)


def test_decoding_leaves_python_to_other_threads(codec):
    """Were its lock held, the main thread would stand still from beginning to end."""
    data = smooth(40_000_000)
    frame = encoded(data, codec, 2)
    during: list[float] = []

    def decode() -> None:
        during.append(time.perf_counter())
        assert len(decoded(frame, data.nbytes)) == data.nbytes
        during.append(time.perf_counter())

    thread = threading.Thread(target=decode)
    ticks: list[float] = []
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.0005)
    begin, end = during
    inside = [begin, *(t for t in ticks if begin < t < end), end]
    assert np.diff(inside).max() < 0.5 * (end - begin)


def test_many_threads_decode_the_same_as_one(codec):
    records = [smooth(40_960, seed) for seed in range(16)]
    frames = [encoded(r, codec, 2) for r in records]
    with ThreadPoolExecutor(8) as pool:
        for k, got in enumerate(pool.map(lambda k: decoded(frames[k % 16], 40_960), range(400))):
            assert got == records[k % 16].tobytes()


def test_no_damage_to_a_frame_passes_or_kills(codec):
    """Each bit of the header, then any: it is told, or decodes to other bytes, which a checksum tells."""
    data = smooth(40_960)
    frame = bytearray(encoded(data, codec, 2))
    sum_of = crc32(data.tobytes())
    rng = random.Random(0)
    told = other = 0
    for bit in [*range(8 * 64), *rng.sample(range(8 * len(frame)), 2000)]:
        frame[bit // 8] ^= 1 << bit % 8
        try:
            got = decoded(bytes(frame), data.nbytes)
        except ValueError:
            told += 1
        else:
            assert len(got) == data.nbytes
            other += crc32(got) != sum_of
        frame[bit // 8] ^= 1 << bit % 8
    assert told > 64 and other > 64
    assert decoded(bytes(frame), data.nbytes) == data.tobytes()
    for cut in (0, 8, 15, 16, len(frame) // 2, len(frame) - 1):
        with pytest.raises(ValueError, match="a frame of"):
            decoded(bytes(frame[:cut]), data.nbytes)
    with pytest.raises(ValueError, match="expected"):
        decoded(bytes(frame), data.nbytes - 2)


# ---- damage


def spots(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Of a shard: (byte, patch) of headers and bodies of frames; (byte, -1) of HDF5's tables and ours."""
    with h5py.File(path) as f:
        chunks: list[tuple[int, int]] = []
        f["patches"].id.chunk_iter(lambda c: chunks.append((c.byte_offset, c.size)))
        ours = {name: f[name].id.get_offset() for name in ("labels", "table", "checksums", "summary")}
    inside = {at for first, size in chunks for at in range(first, first + size)}
    return {
        "header": [(first + k, i) for i, (first, _) in enumerate(chunks) for k in range(16)],
        "body": [(first + k, i) for i, (first, size) in enumerate(chunks) for k in range(16, size, 101)],
        "ours": [(at + 2, -1) for at in ours.values()],
        "hdf5": [(at, -1) for at in range(0, path.stat().st_size, 3) if at not in inside],
    }


def test_any_flipped_bit_is_found_and_mended_from_the_damaged_patch_alone(store, whole):
    rng, truth = random.Random(1), content(whole)
    for trial in range(48):
        path = sorted((store / "shards").iterdir())[rng.randrange(3)]
        kinds = spots(path)
        at, hit = rng.choice(kinds[[*kinds][trial % 4]])
        flip(path, at, rng.randrange(8))
        (damage,) = verify(store, 1) or []
        assert damage.path == str(path), f"byte {at} of {path}"
        assert hit == -1 or damage.patches in ((hit,), ()), f"byte {at} of {path}"
        said: list[str] = []
        read = repair(store, count=1, say=said.append)
        assert content(store) == truth, f"byte {at} of {path}"
        assert hit == -1 or read == 1, f"byte {at} of {path}: {said}"
    assert verify(store, 1) == []


def test_damaged_tables_are_mended_without_the_archive(store, whole, tmp_path):
    """HDF5 cannot say where the records are: their own headers do."""
    gone = tmp_path / "gone"
    gone.mkdir()
    path = store / "shards" / "00001.h5"
    rng = random.Random(2)
    for at, _ in rng.sample(spots(path)["hdf5"], 8):
        flip(path, at, rng.randrange(8))
        repair(store, gone, 1, lambda _: None)
        assert path.read_bytes() == (whole / "shards" / path.name).read_bytes(), f"byte {at}"


@ways_to_go
def test_a_shard_that_is_gone_is_made_again(store, whole, how):
    made_again(store, whole, how, torn=60_000)


def test_a_damaged_shard_is_not_taken_for_finished_and_its_patch_is_named(store):
    path, info = store / "shards" / "00000.h5", StoreInfo.read(store)
    held = path.read_bytes()
    assert finished(store, 0, info.shards[0].plan) is not None
    for kind, found in spots(path).items():
        if kind == "hdf5":  # not all of that is content
            continue
        for at, hit in random.Random(3).sample(found, 4):
            flip(path, at, 5)
            assert finished(store, 0, info.shards[0].plan) is None, f"{kind}, byte {at}"
            if kind == "header" and at >= Store(store).offset_of[hit] + 4:
                with pytest.raises(StoreError, match=rf"00000\.h5: patch {hit} .*store repair"):
                    Store(store).patch(hit)
            path.write_bytes(held)


# ---- without the packages


def test_what_is_missing_is_told_before_any_work(archive, whole, codec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    _hdf5plugin.cache_clear()
    with pytest.raises(StoreError, match=r"hdf5plugin is not installed; pip install 'jeoparda\[compressed\]'"):
        run(recipe(archive, tmp_path / "s", codec), lambda _: None)
    assert not (tmp_path / "s").exists()
    assert len(Store(whole).patch(0)) > 0  # to read it, numcodecs is enough
    monkeypatch.setitem(sys.modules, "numcodecs", None)
    _blosc.cache_clear()
    with pytest.raises(StoreError, match=r"numcodecs is not installed; pip install 'jeoparda\[compressed\]'"):
        Store(whole).patch(0)


def test_a_compressed_store_is_fed_from_its_copies(store):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        same_from_copies(Store(store), Path(folder), FeedRecipe(kind="raw"), [])
