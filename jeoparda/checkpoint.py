"""Checkpoints: whole or not there, verified before they are believed.

RUN/checkpoints/NNNNNNNN.pt by global step, with the file's SHA-256 beside it. A file holds tensors and plain types
only, and is loaded as such (`weights_only`): a checkpoint from elsewhere runs no code.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from jeoparda.errors import CheckpointError
from jeoparda.files import room, sha256, whole


def path_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:08d}.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` durably; a crash at any moment leaves either no file of that name or a whole one."""
    with whole(path) as draft:
        _write(state, draft)
        known = _digests(path) if path.exists() else []  # which it fits until it is replaced
        with whole(_digest_of(path)) as digest:  # first: a checkpoint is never there without it
            digest.write_text("".join(f"{d}  {path.name}\n" for d in [sha256(draft), *known[:1]]))


def _write(state: dict[str, Any], path: Path) -> None:
    """torch.save tells of a full disk by a RuntimeError, whose context is what the system said."""
    with open(path, "wb") as f:
        try:
            torch.save(state, f)
        except RuntimeError as e:
            if isinstance(e.__context__, OSError):
                raise e.__context__ from None
            raise


def mark_best(path: Path) -> None:
    """Let best.pt, a link, name this checkpoint."""
    link = path.with_name(".best.pt.part")
    with room(link):
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(path.with_name("best.pt"))


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digests(path: Path) -> list[str]:
    """SHA-256 digests, newest first: of what was last to be written at `path`, and of the file that it was to replace,
    which a crash in between leaves in place. [] without a checksum file."""
    digest = _digest_of(path)
    return [line.split()[0] for line in digest.read_text().splitlines() if line] if digest.exists() else []


def load(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU. CheckpointError where it is missing or not what was written."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; `jeoparda train` writes them under RUN/checkpoints")
    digest = _digest_of(path.resolve())  # best.pt is a link
    if not digest.exists():
        raise CheckpointError(f"{path}: its checksum {digest.name} is missing; copy both files together")
    if sha256(path) not in _digests(path.resolve()):
        raise CheckpointError(f"{path}: differs from its checksum; it is damaged or was copied in part")
    return torch.load(path, map_location="cpu", weights_only=True)


def written(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or damaged, in the order of their steps."""
    return sorted((run / "checkpoints").glob("[0-9]*.pt"))


def newest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole; a damaged one is named on stderr and passed over. None without any."""
    for path in reversed(written(run)):
        try:
            return path, load(path)
        except CheckpointError as e:
            print(f"{e}; trying the one before", file=sys.stderr, flush=True)
    return None


def prune(run: Path, keep: int, newest: int) -> None:
    """Delete all but the best and the last `keep` checkpoints up to step `newest`. Later ones are damaged, or of a past
    that the run did not go on from."""
    for draft in (run / "checkpoints").glob(".*.part"):  # of a writer that was killed; there is only one writer
        draft.unlink()
    best = (run / "checkpoints" / "best.pt").resolve()
    found = written(run)
    past = [path for path in found if int(path.stem) <= newest]
    kept = {*past[-keep:], *(path for path in past if path.resolve() == best)}
    for path in found:
        if path not in kept:
            path.unlink()
            _digest_of(path).unlink(missing_ok=True)
