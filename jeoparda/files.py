"""Files that are whole or not there, and their checksums."""

import errno
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from jeoparda.errors import DiskError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LEAVE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_DEAD_S = 3600.0  # a draft of another host that nobody has touched for so long has no writer


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Turns the error of a full disk, an exhausted quota or a read-only filesystem into a DiskError that names the
    file and what to do."""
    try:
        yield
    except OSError as e:
        if isinstance(e, DiskError) or e.errno not in _NO_ROOM + _NO_LEAVE:
            raise
        todo = "make room" if e.errno in _NO_ROOM else "get leave to write there"
        raise DiskError(
            f"{path}: cannot be written: {os.strerror(e.errno)}; nothing is lost: {todo} (or write elsewhere) and run "
            "the same command again, what is finished is kept"
        ) from e


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to; when the block ends well, the file is made durable and then appears at `path`.

    A crash at any moment leaves `path` as it was. Two writers of one file do no harm, on two nodes either: each has
    its own draft. DiskError where there is no room.
    """
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    with room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            sync(draft)
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync(path.parent)  # else the name may be gone after a power cut


def clear_drafts(folder: Path) -> None:
    """Delete the drafts of writers that were killed, and leave those of writers that still write."""
    for draft in folder.glob(".*.part"):
        name = re.fullmatch(rf".*\.{re.escape(socket.gethostname())}\.(\d+)\.part", draft.name)
        try:
            if not (name and _runs(int(name[1]))) and (name or time.time() - draft.stat().st_mtime > _DEAD_S):
                draft.unlink()
        except FileNotFoundError:  # its writer was done with it, or another cleans up too
            continue


def _runs(pid: int) -> bool:
    """Ended processes linger as zombies where a container's first process reaps none; they write no more."""
    if not psutil.pid_exists(pid):
        return False
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:  # another user's, hidden from this one
        return True


def sync(path: Path) -> None:
    """See a file's content, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()
