"""Compressed records and checksums: bytes to bytes, without HDF5, its lock or Python's.

A compressed record is a frame of c-blosc 1 (README_CHUNK_FORMAT.rst there): version, version of the codec, flags and
size of an item, a byte each, then nbytes, block size and cbytes, uint32 little-endian. HDF5's filter 32001 reads it as
it is. HDF5 itself would take a compound record for single bytes; the frames made here shuffle bits across pixels.
"""

import re
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from isal.isal_zlib import crc32 as crc32  # the value of zlib.crc32, 20 times as fast; releases the GIL from 5 kB on

from jeoparda.errors import StoreError

_HEADER = 16  # bytes
_LEVELS = {"lz4": 9, "zstd": 5}  # beyond, a percent or two of size costs four times the time to write
_BITSHUFFLE = 2


def encoded(record: np.ndarray, compression: str, itemsize: int) -> bytes:
    """The frame of a record. itemsize: of its pixels, in bytes. The same bytes on any machine, for one version of
    c-blosc."""
    items = np.frombuffer(record.tobytes(), f"u{itemsize}")
    return bytes(_blosc().compress(items, compression.encode(), _LEVELS[compression], _BITSHUFFLE))


def decoded(raw: bytes | memoryview, nbytes: int) -> bytes:
    """The `nbytes` of a record from its frame; other threads run meanwhile. ValueError where the frame is damaged,
    unless the damage is in pixels alone: their checksum tells."""
    said = _sizes(raw) if len(raw) >= _HEADER else None
    if said != (nbytes, len(raw)):  # c-blosc believes its header: it would read or write beyond a buffer
        raise ValueError(f"a frame of {len(raw)} bytes says (decoded, encoded) {said}, expected {(nbytes, len(raw))}")
    try:
        return bytes(_blosc().decompress(raw))
    except RuntimeError as e:
        raise ValueError(f"its frame is damaged: {e}") from e


def frames(shard: bytes, first: int, count: int, nbytes: int) -> list[tuple[int, int]]:
    """(byte, bytes) of up to `count` frames of `nbytes` decoded in a shard's file, found by their own headers from the
    byte `first` on: for shards whose HDF5 tables are damaged. HDF5 may have put tables between them."""
    header = re.compile(rb"\x02..[\x01-\x08]" + re.escape(nbytes.to_bytes(4, "little")), re.DOTALL)
    found: list[tuple[int, int]] = []
    while len(found) < count and (match := header.search(shard, first)):
        size = max(_HEADER, _sizes(shard[match.start() : match.start() + _HEADER].ljust(_HEADER, b"\0"))[1])
        found.append((match.start(), size))
        first = match.start() + size
    return found


def check_compression(compression: str) -> None:
    """StoreError where what writes it is not installed: known before any work."""
    if compression != "none":
        hdf5_filter(compression)


def hdf5_filter(compression: str) -> dict[str, Any]:
    """What h5py's create_dataset takes to know the frames. StoreError where what is needed is not installed."""
    _blosc()
    return dict(_hdf5plugin().Blosc(compression, _LEVELS[compression], _BITSHUFFLE))


def codec_version() -> str:
    """Of what encodes, on which the bytes of a compressed shard depend."""
    return f"c-blosc {_blosc().VERSION_STRING}"


def _sizes(raw: bytes | memoryview) -> tuple[int, int]:
    """(nbytes, cbytes) as a frame's header has them."""
    return int.from_bytes(raw[4:8], "little"), int.from_bytes(raw[12:16], "little")


@cache  # imported when it is needed: it takes 0.2 s
def _blosc() -> ModuleType:
    try:
        from numcodecs import blosc
    except ModuleNotFoundError as e:
        raise _missing(e) from e
    blosc.use_threads = False  # its own threads write blocks in whatever order they end, and share one lock
    return blosc


@cache
def _hdf5plugin() -> ModuleType:
    """With its filter registered: HDF5 writes the name of one that is into the file; bytes must not depend on that."""
    try:
        import hdf5plugin
    except ModuleNotFoundError as e:
        raise _missing(e) from e
    if not hdf5plugin.register("blosc"):  # of itself it leaves it to HDF5_PLUGIN_PATH, by which h5py cannot write
        raise StoreError("compressed stores: hdf5plugin cannot register its filter 'blosc', see what it says above")
    return hdf5plugin


def _missing(e: ModuleNotFoundError) -> StoreError:
    return StoreError(f"compressed stores: {e.name} is not installed; pip install 'jeoparda[compressed]'")
