"""Staged copies read as memory: a batch is gathered at the speed of a memory copy, by one loop in C for each field.

Only copies in memory: they have no name, so nobody can cut them short, and no disk that may fail. What cannot be read
of a mapped file ends the process by SIGBUS instead of with a message; all other files are read by system calls, which
tell.
"""

import ctypes
import math
import mmap
from pathlib import Path

import numpy as np
import torch

_ITEMS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}  # bytes; the wider, the faster


class Maps:
    """Copies of shards in this process's memory; processes that map the same copy share its pages."""

    def __init__(self, shards: int) -> None:
        self._bases = np.zeros(shards, np.int64)  # addresses; 0: not here
        self._held: dict[int, torch.Tensor] = {}
        # an address, and the memory from there on; one value, as threads gather while maps are added
        self._span = 0, torch.empty(0, dtype=torch.uint8)

    def add(self, copies: dict[int, Path]) -> None:
        """Shards that are not here yet, and where their copies are."""
        for shard, copy in copies.items():
            # keeps no descriptor, as mmap.mmap would, and a large archive has many shards
            held = torch.from_file(str(copy), shared=False, size=copy.stat().st_size, dtype=torch.uint8)
            self._held[shard], self._bases[shard] = held, held.data_ptr()
        ends = [held.data_ptr() + len(held) for held in self._held.values()]
        first = min(held.data_ptr() for held in self._held.values())
        # over all maps and whatever lies between them; a map ends with its last page
        size = -(-(max(ends) - first) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._span = first, torch.frombuffer((ctypes.c_uint8 * size).from_address(first), dtype=torch.uint8)

    def hold(self, shards: np.ndarray) -> np.ndarray:
        """Which of these shards are here, (b,) bool."""
        return self._bases[shards] != 0

    def view(self, shard: int, offset: int, size: int) -> memoryview:
        """`size` bytes of a shard from the byte `offset` on."""
        return self._held[shard].numpy().data[offset : offset + size]

    def gather(self, shards: np.ndarray, offsets: np.ndarray, out: torch.Tensor) -> None:
        """Row i of `out`, (b, n) uint8, becomes the n bytes of shard `shards[i]` from the byte `offsets[i]` on."""
        first, memory = self._span
        places = self._bases[shards] - first + offsets
        step = math.gcd(int(np.gcd.reduce(places)), out.shape[1], out.stride(0), out.data_ptr(), max(_ITEMS))
        items = memory.view(_ITEMS[step])
        n = out.shape[1] // step
        rows = items.as_strided((len(items) - n + 1, n), (1, 1))  # they overlap; of them only mapped ones are looked at
        torch.index_select(rows, 0, torch.from_numpy(places // step), out=out.view(_ITEMS[step]))
