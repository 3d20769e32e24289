"""A shard in the hands of a stranger with HDF5's own tools and no jeoparda: names, shapes, units, and the pixels."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from jeoparda.store import Store
from tests.unit.test_ingest_sources import ingest, pairs_degraded, series_eopatch, v2

MAKERS = {"masks": v2, "pairs": pairs_degraded, "series": series_eopatch}
H5_TYPES = {"uint16": "unsigned short", "uint8": "unsigned char", "float32": "float"}
# of each store: what the attribute of each field of a record says, word for word
TOLD = {
    "masks": {
        "10m": "band row col; bands B02 B03 B04 B08; pixels of 10 m; unit: reflectance x 10000",
        "20m": "band row col; bands B05 B06 B07 B8A B11 B12; pixels of 20 m; unit: reflectance x 10000",
        "60m": "band row col; bands B01 B09; pixels of 60 m; unit: reflectance x 10000",
        "mask": "row col; class numbers, 255 where there is no label",
    },
    "pairs": {
        "10m": "band row col; bands G R; pixels of 10 m; unit: digital number",
        "high": "band row col; bands G R; pixels of 2.5 m; unit: digital number",
        "valid": "row col; 1 where measured and cloud-free",
        "mask": "row col; class numbers, 255 where there is no label",
    },
    "series": {
        "10m": "date band row col; bands BANDS_1 BANDS_2; pixels of 10 m; unit: digital number",
        "valid": "date row col; 1 where measured and cloud-free",
        "mask": "date row col; class numbers, 255 where there is no label",
    },
}


@pytest.fixture(scope="module", params=MAKERS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def store(kind, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp(kind)
    given = {"archive": folder / "a", **MAKERS[kind](folder / "a")}
    ingest({**given, "patches_per_shard": 4}, folder / "s")
    return Store(folder / "s")


def tool(*words: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


# ---- HDF5's command line


@pytest.mark.needs("h5ls")
def test_h5ls_lists_every_dataset_and_field_with_shape_and_type(store):
    lines = tool("h5ls", store.paths[0]).splitlines()
    listed = {line.split()[0]: line.split("Dataset ")[1] for line in lines}
    n, classes = store.info.shards[0].patches, len(store.info.classes)
    dates = {"dates": f"{{{n}, {len(store.dates(0))}}}"} if store.dates(0) else {}
    assert listed == {
        "patches": f"{{{n}}}", "labels": f"{{{n}, {classes}}}", "table": f"{{{n}}}", "checksums": f"{{{n}}}",
        "summary": "{SCALAR}",
    } | dates  # fmt: skip
    told = tool("h5ls", "-v", f"{store.paths[0]}/patches")
    for name, (kind, shape) in store.info.layout.fields().items():
        size = ",".join(map(str, shape))
        assert re.search(rf'"{name}" +\+\d+ +\[{size}\] native {H5_TYPES[kind]}\n', told), told
    assert "100.00% utilization" in told  # contiguous, not compressed: to be read as plain bytes
    columns = re.findall(r'"(\w+)" +\+', tool("h5ls", "-v", f"{store.paths[0]}/table"))
    assert columns == ["id", "source", "crs", "transform", "date", "country", "split", "valid_fraction"]


@pytest.mark.needs("h5ls")
def test_h5ls_with_data_and_h5dump_say_axes_bands_pixels_and_units(store, kind):
    """`h5ls -v` names attributes; their text comes with -d, and out of `h5dump -A`."""
    path = store.paths[0]
    header = tool("h5dump", "-A", path)
    listing = tool("h5ls", "-v", "-d", f"{path}/patches")
    assert TOLD[kind].keys() == store.info.layout.fields().keys()
    for name, text in TOLD[kind].items():
        assert f'"{text}"' in listing, name
        assert f'"{text}"' in tool("h5dump", "-a", f"/patches/{name}", path), name
        assert f'"{text}"' in header
    for text in ("title", "sensor", "nomenclature", "classes", "format"):
        assert f'ATTRIBUTE "{text}"' in header
    assert '"patch class"' in header and "1 where the patch carries the class" in header
    assert "x = a col + b row + c, y = d col + e row + f of the finest pixels, in the units of the CRS" in header
    assert all(name in header for name in store.info.classes)


@pytest.mark.needs("h5ls")
def test_h5dump_gives_a_row_of_the_table_and_the_labels(store):
    row = tool("h5dump", "-d", "/table", "-s", "1", "-c", "1", store.paths[0])
    for column in ("id", "source", "crs", "date", "split"):
        assert f'"{store.column(column)[1]}' in row
    if store.info.classes:
        told = tool("h5dump", "-d", "/labels", "-s", "1,0", "-c", f"1,{len(store.info.classes)}", store.paths[0])
        numbers = re.findall(r"\(1,\d+\): ([\d, ]+)", told)
        assert [int(n) for n in re.findall(r"\d+", " ".join(numbers))] == store.labels[1].tolist()


# ---- h5py, in a process that never heard of jeoparda

SCRIPT = """
import json, sys, zlib
import h5py, numpy as np

path = sys.argv[1]
with h5py.File(path) as f:
    patches, told = f["patches"], dict(f["patches"].attrs)
    pixels = {name: patches[name] for name in patches.dtype.names}     # (patch, [date,] band, row, col)
    about = {name: told[name] for name in pixels}
    bands = {n: t.split("bands ")[1].split(";")[0].split() for n, t in about.items() if "bands " in t}
    classes = json.loads(f.attrs["classes"])
    table, labels = f["table"][:], f["labels"][:]
    carried = [[c for c, has in zip(classes, row) if has] for row in labels]
    begin, size = patches.id.get_offset(), patches.dtype.itemsize
    checksums, kind = f["checksums"][:], patches.dtype
# and without HDF5: record i is the bytes at begin + i * size
raw = np.memmap(path, kind, "r", begin, len(table))
assert all((raw[n] == pixels[n]).all() for n in pixels) and begin % 4096 == 0
assert [zlib.crc32(r.tobytes()) for r in raw] == checksums.tolist()
assert "jeoparda" not in sys.modules
np.savez(sys.argv[2], **pixels)
print(json.dumps({
    "bands": bands, "carried": carried, "id": [i.decode() for i in table["id"]],
    "transform": table["transform"].tolist(), "shapes": {n: [str(a.dtype), a.shape] for n, a in pixels.items()},
}))
"""


def test_h5py_alone_reads_everything(store, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, store.paths[1], tmp_path / "p.npz"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    first, n = store.info.shards[0].patches, store.info.shards[1].patches
    fields = store.info.layout.fields()
    assert told["shapes"] == {name: [kind, [n, *shape]] for name, (kind, shape) in fields.items()}
    groups = [*store.info.groups, *([store.info.layout.high] if store.info.layout.high else [])]
    assert told["bands"] == {g.name: list(g.bands) for g in groups}
    assert told["id"] == store.column("id")[first : first + n].tolist()
    assert told["transform"] == store.column("transform")[first : first + n].tolist()
    with np.load(tmp_path / "p.npz") as pixels:
        for i in range(n):
            assert all((pixels[name][i] == store.patch(first + i)[name]).all() for name in fields)
            names = [store.info.classes[c] for c in np.flatnonzero(store.labels[first + i])]
            assert told["carried"][i] == names
