"""Tar files are read as tarfile reads them, and what is wrong with one is told, never passed over."""

import gzip
import io
import os
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import zstandard

from jeoparda.errors import ArchiveError
from jeoparda.ingest import tarball
from jeoparda.ingest.tarball import Bundle, Finder, TruncatedTar, bundles, members

T = TypeVar("T")
LONG = "BigEarthNet-S2/" + "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57/" * 2
ENDINGS = ("_B01.tif", "_B02.tif", "_x.json")


def pack(path: Path, files: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=kind) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = memory.getvalue()
    if path.suffix == ".gz":
        data = gzip.compress(data, 1)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)
    path.write_bytes(data)
    return path


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def patches(n: int, size: int = 700) -> list[tuple[str, bytes]]:
    return [(f"top/P_{i}/P_{i}{e}", noise(size + i + k, 10 * i + k)) for i in range(n) for k, e in enumerate(ENDINGS)]


def until_error(stream: Iterator[T]) -> tuple[list[T], ArchiveError | None]:
    """What came, and the error that ended it."""
    found = []
    try:
        for item in stream:
            found.append(item)
    except ArchiveError as e:
        return found, e
    return found, None


SUFFIXES = ("a.tar", "a.tar.gz", "a.tar.zst")


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_bytes_are_those_of_tarfile(tmp_path, name, kind):
    """Sizes around the 512-byte block, names around 100 characters and beyond the 255 of ustar."""
    files = [(f"a/{i}", noise(size, i)) for i, size in enumerate((0, 1, 511, 512, 513, 5_000_001))]
    files += [("a/" + "n" * 98, b"99"), ("b" * 60 + "/" + "n" * 60, b"121"), ("a/é", b"not ASCII")]
    if kind != tarfile.USTAR_FORMAT:
        files.append((LONG * 4 + "x.tif", b"long"))
    path = pack(tmp_path / name, files, kind)
    assert [(m.name, m.content) for m in members(path)] == files
    assert [(m.name, m.size, m.content) for m in members(path, lambda n: n == "a/5")] == [
        (n, len(c), c if n == "a/5" else None) for n, c in files
    ]


def test_folders_and_links_are_passed_over_and_dots_dropped(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("./top", tarfile.DIRTYPE), ("./top/l", tarfile.SYMTYPE), ("./top/f", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    assert [m.name for m in members(tmp_path / "a.tar")] == ["top/f"]


def test_a_zstandard_file_of_many_frames_is_read_to_its_end(tmp_path):
    """pzstd and `cat a.zst b.zst` write one frame after the other; the same holds for gzip."""
    files = patches(20)
    whole = pack(tmp_path / "a.tar", files).read_bytes()
    cuts = [whole[i : i + 9999] for i in range(0, len(whole), 9999)]
    (tmp_path / "z").write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, cuts)))
    (tmp_path / "g").write_bytes(b"".join(map(gzip.compress, cuts)))
    for name in "zg":
        assert [(m.name, m.content) for m in members(tmp_path / name)] == files


@pytest.mark.parametrize("name", SUFFIXES)
def test_cut_short_anywhere_it_says_where_and_gives_what_was_whole(tmp_path, name):
    files = patches(6, 40_000)
    whole = pack(tmp_path / name, files).read_bytes()
    end = len(whole.rstrip(b"\0")) if name == "a.tar" else len(whole)
    cut = tmp_path / f"cut-{name}"
    for size in (4, 500, *range(977, end, end // 37), end - 1):
        cut.write_bytes(whole[:size])
        found, error = until_error(members(cut))
        assert isinstance(error, TruncatedTar), (size, error)
        assert [(m.name, m.content) for m in found] == files[: len(found)]
        assert f"cut-{name}: ends too early, at byte " in str(error) and f"({size} bytes on disk)" in str(error)
        last = f"the last whole member is {found[-1].name}" if found else "no member before it"
        assert last in str(error)
        assert len(found) >= (size - 977) // 40_600 - 4, "all but the decoder's last block of 128 KiB"


def test_a_tar_whose_closing_mark_alone_is_gone_is_not_whole(tmp_path):
    """tarfile takes it for one; a download that stopped between two files looks just like it."""
    files = patches(3)
    whole = pack(tmp_path / "a.tar", files).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: sum(512 + -(-len(c) // 512) * 512 for _, c in files)])
    with tarfile.open(tmp_path / "cut") as tar:
        assert len(tar.getnames()) == len(files)
    found, error = until_error(members(tmp_path / "cut"))
    assert len(found) == len(files) and isinstance(error, TruncatedTar)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.zst"])
def test_a_flipped_bit_anywhere_is_found(tmp_path, name):
    whole = pack(tmp_path / name, patches(8)).read_bytes()
    rng = np.random.default_rng(1)
    for at in [*rng.integers(64, len(whole), 60), len(whole) - 2]:
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "x").write_bytes(broken)
        _, error = until_error(members(tmp_path / "x"))
        assert error and str(tmp_path / "x") in str(error), f"bit of byte {at} of {len(whole)}: {error}"


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.zst"])
def test_who_stops_early_leaves_no_thread_and_no_open_file(tmp_path, name):
    path = pack(tmp_path / name, patches(40, 40_000))
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    stream = members(path)
    next(stream)
    assert threading.active_count() == before[0] + 1
    stream.close()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "top/../../up"])
def test_paths_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(ArchiveError, match="leads out of the archive"):
        list(members(pack(tmp_path / "a.tar", [("top/a", b""), (name, b"")])))


def test_what_is_no_tar_is_told(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"<html>" + b"404 not found " * 100)
    with pytest.raises(ArchiveError, match=r"neither \.tar, \.gz nor \.zst"):
        list(members(tmp_path / "a.tar.gz"))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(TruncatedTar, match="no member before it"):
        list(members(tmp_path / "empty"))
    with pytest.raises(ArchiveError, match=r"absent: cannot be read: No such file"):
        list(members(tmp_path / "absent"))


# ---- patches


def names(path: Path, **more) -> list[str]:
    return [b.name for b in bundles(path, ENDINGS, **more)]


def test_patches_come_whole_in_the_order_of_the_tar(tmp_path):
    files = patches(7)
    files[0], files[1] = files[1], files[0]
    more = [("top/README.md", b"text"), ("LICENSE", b""), ("top/P_3/notes.txt", b"strange file")]
    path = pack(tmp_path / "a.tar.zst", [*more, *files])
    found = list(bundles(path, ENDINGS))
    assert [b.folder for b in found] == [f"top/P_{i}" for i in range(7)]
    assert {f"{b.folder}/{n}": c for b in found for n, c in b.files.items()} == dict(files)
    assert all(not b.missing for b in found)
    only = list(bundles(path, ENDINGS, lambda n: n.endswith(".json")))
    assert [list(b.files) for b in only] == [[f"P_{i}_x.json"] for i in range(7)]


def test_a_patch_that_lacks_files_says_which(tmp_path):
    files = [f for f in patches(5) if f[0] not in ("top/P_2/P_2_B02.tif", "top/P_2/P_2_x.json")]
    path = pack(tmp_path / "a.tar", files)
    assert [b.name for b in bundles(path, ENDINGS)] == ["P_0", "P_1", "P_3", "P_4", "P_2"]
    early = list(bundles(path, ENDINGS, distance=4))
    assert [b.name for b in early] == ["P_0", "P_1", "P_3", "P_2", "P_4"]
    assert early[3] == Bundle("top/P_2", {"P_2_B01.tif": files[6][1]}, ("P_2_B02.tif", "P_2_x.json"))


def test_interleaved_files_are_held_up_to_a_bound(tmp_path):
    by_band = sorted(patches(30), key=lambda f: f[0].rpartition("_")[2])
    path = pack(tmp_path / "a.tar", by_band)
    assert sorted(names(path)) == sorted(f"P_{i}" for i in range(30))
    with pytest.raises(ArchiveError, match=r"do not lie together \(\d+ bytes of 1\d patches in between\).*tar --sort"):
        names(path, held_bytes=10_000)
    with pytest.raises(ArchiveError, match=r"P_0 do not lie together \(members 12 or more apart\)"):
        names(path, distance=12)


def test_the_patches_before_a_cut_come_before_the_error(tmp_path):
    whole = pack(tmp_path / "a.tar", patches(5)).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: 8 * 1536 + 600])
    found, error = until_error(bundles(tmp_path / "cut", ENDINGS))
    assert isinstance(error, TruncatedTar)
    assert [(b.name, len(b.missing)) for b in found] == [("P_0", 0), ("P_1", 0), ("P_2", 1)]


def test_memory_does_not_grow_with_the_tar(tmp_path):
    def peak(n: int) -> int:
        path = pack(tmp_path / f"{n}.tar", patches(n, 20_000))
        tracemalloc.start()
        assert sum(1 for _ in bundles(path, ENDINGS)) == n
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(200), peak(800)  # 12 and 48 MB, three and twelve times what is read at once
    assert large < small + 1_000_000


def test_the_finder_goes_forwards_and_keeps_what_it_is_told_to_keep(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.tar.gz", patches(6))
    forward = Finder(path, bundles(path, ENDINGS))
    content = dict(patches(6))
    for i in (0, 2, 5):
        assert forward.find(f"top/P_{i}") == {n: c for n, c in content.items() if f"P_{i}/" in n}
    with pytest.raises(ArchiveError, match="top/P_1 is no longer where it was when the ingest was planned"):
        forward.find("top/P_1")
    keeping = Finder(path, bundles(path, ENDINGS), keep=True)
    for i in (4, 0, 5, 3):
        assert set(keeping.find(f"top/P_{i}")) == {n for n in content if f"P_{i}/" in n}
    monkeypatch.setattr(tarball, "HELD_BYTES", 5000)
    with pytest.raises(ArchiveError, match="another order than the images'"):
        Finder(path, bundles(path, ENDINGS), keep=True).find("top/P_5")
