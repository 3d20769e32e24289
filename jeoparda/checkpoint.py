"""Checkpoints: whole or not there, verified before they are believed.

RUN/checkpoints/NNNNNNNN.pt by global step, with the file's SHA-256 beside it. A file holds tensors and plain types
only, and is loaded as such (`weights_only`): a checkpoint from elsewhere runs no code.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

from jeoparda.errors import CheckpointError


def path_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:08d}.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` durably; a crash at any moment leaves either no file of that name or a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    torch.save(state, part)
    _sync(part)
    digest = path.with_name(path.name + ".sha256")
    draft = digest.with_name(f".{digest.name}.part")
    draft.write_text(f"{_sha256(part)}  {path.name}\n")
    _sync(draft)
    os.replace(draft, digest)
    os.replace(part, path)


def _sync(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def _sha256(path: Path) -> str:
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def load(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU. CheckpointError where it is missing or not what was written."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; `jeoparda train` writes them under RUN/checkpoints")
    digest = path.with_name(path.name + ".sha256")
    if not digest.exists():
        raise CheckpointError(f"{path}: its checksum {digest.name} is missing; copy both files together")
    if digest.read_text().split()[0] != _sha256(path):
        raise CheckpointError(f"{path}: differs from its checksum; it is damaged or was copied in part")
    return torch.load(path, map_location="cpu", weights_only=True)


def newest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole; a damaged one is named on stderr and passed over. None without any."""
    for path in sorted((run / "checkpoints").glob("[0-9]*.pt"), reverse=True):
        try:
            return path, load(path)
        except CheckpointError as e:
            print(f"{e}; trying the one before", file=sys.stderr, flush=True)
    return None


def prune(run: Path, keep: int) -> None:
    """Delete all but the last `keep` numbered checkpoints; best.pt stays."""
    for path in sorted((run / "checkpoints").glob("[0-9]*.pt"))[:-keep]:
        path.unlink()
        path.with_name(path.name + ".sha256").unlink(missing_ok=True)
