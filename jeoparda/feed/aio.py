"""Many reads in one system call: Linux's io_submit(2), without Python between them.

From the page cache they are done when the call returns; else the calling thread waits, and others go on.
"""

import ctypes
import os
import platform
import weakref

import numpy as np

# io_setup, io_destroy, io_getevents, io_submit: the C library has no functions for them
_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}.get(platform.machine())
_PREADV = 7
_REQUEST = np.dtype(  # struct iocb of linux/aio_abi.h, little-endian
    [("tag", "u8"), ("key", "u4"), ("flags", "u4"), ("opcode", "u2"), ("priority", "i2"), ("file", "u4"),
     ("pieces", "u8"), ("count", "u8"), ("offset", "i8"), ("reserved", "u8"), ("more", "u4"), ("signal", "u4")]
)  # fmt: skip
_EVENT = np.dtype([("tag", "u8"), ("request", "u8"), ("result", "i8"), ("more", "i8")])
PIECE = np.dtype([("address", "u8"), ("size", "u8")])  # struct iovec
PIECES = 1024  # of one read, at the most
_libc = ctypes.CDLL(None, use_errno=True)


class Reads:
    """One thread's reads. OSError where the kernel, a container or the limit fs.aio-max-nr does not allow them."""

    def __init__(self, depth: int = 64) -> None:
        """depth: reads in one call at the most; more are done by several."""
        if _CALLS is None:
            raise OSError(f"io_submit is not known on {platform.machine()}")
        self._depth = depth
        context = ctypes.c_ulong(0)
        self._call(0, ctypes.c_long(depth), ctypes.byref(context))
        self._context = context
        weakref.finalize(self, _libc.syscall, ctypes.c_long(_CALLS[1]), context)

    def read(self, files: np.ndarray, offsets: np.ndarray, pieces: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(n,) int64, the bytes that each read got, or the negative of its errno. files: (n,) descriptors; offsets:
        (n,) bytes; pieces: (n,) addresses of the first of `counts` PIECEs in a row, each memory for a part of the read.
        """
        requests = np.zeros(len(files), _REQUEST)
        requests["tag"] = np.arange(len(files))
        requests["opcode"] = _PREADV
        requests["file"], requests["offset"] = files, offsets
        requests["pieces"], requests["count"] = pieces, counts
        addresses = requests.ctypes.data + _REQUEST.itemsize * np.arange(len(files), dtype=np.uint64)
        events, results = np.zeros(self._depth, _EVENT), np.zeros(len(files), np.int64)
        done = 0
        while done < len(files):
            some = addresses[done : done + self._depth]
            begun = self._call(3, self._context, ctypes.c_long(len(some)), ctypes.c_void_p(some.ctypes.data))
            ended = 0
            while ended < begun:
                rest = ctypes.c_long(begun - ended)
                got = self._call(2, self._context, rest, rest, ctypes.c_void_p(events.ctypes.data), None)
                results[events["tag"][:got].astype(np.int64)] = events["result"][:got]
                ended += got
            done += begun
        return results

    def _call(self, which: int, *words: object) -> int:
        got = int(_libc.syscall(ctypes.c_long(_CALLS[which]), *words))  # type: ignore[index]
        if got < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return got
