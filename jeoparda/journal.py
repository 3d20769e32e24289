"""Journals: one JSON object a line, added at the end and never rewritten; and where a run's figures come from.

A line is on the disk when `append` returns. What a crash can leave is a last line cut short: `read` tells of it,
and the next `append` cuts it off and says so in the journal. Any other damage is an error.
"""

import json
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from jeoparda import __version__
from jeoparda.errors import JeopardaError
from jeoparda.files import room, sync

TRUNCATED = "truncated"  # the event that stands for a last line cut short
_NAMED = ("torch", "numpy", "h5py", "horovod")  # packages whose version explains a figure


class JournalError(JeopardaError, OSError):
    """A journal that cannot be read, or that holds a damaged line."""


class Journal:
    """A journal to write to, by one process. The file appears with the first line."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._mended = False

    def append(self, event: str, **fields: Any) -> None:
        """Add one line and see it on the disk. `time` (UTC, ISO 8601) is added unless given.

        nan and infinity become null; arrays become lists; paths become strings.
        """
        if not self._mended:
            self._mend()
        self._write({"event": event, "time": _now(), **fields})

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(_plain(entry), ensure_ascii=False, allow_nan=False) + "\n"
        new = not self.path.exists()
        with room(self.path):
            with open(self.path, "ab") as f:
                f.write(line.encode())  # one write: a reader sees the whole line or a cut one, never two mixed
                f.flush()
                os.fsync(f.fileno())
            if new:
                sync(self.path.parent)

    def _mend(self) -> None:
        """Cut off a line that a crash left unfinished, or else the next one would be glued to it."""
        self._mended = True
        with room(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        tail = content[content.rfind(b"\n") + 1 :]
        if not tail:
            return
        whole = _parse(tail) is not None
        with open(self.path, "r+b") as f:
            if whole:  # only its line end is missing
                f.seek(0, os.SEEK_END)
                f.write(b"\n")
            else:
                f.truncate(len(content) - len(tail))
            f.flush()
            os.fsync(f.fileno())
        if not whole:
            self._write({"event": TRUNCATED, "time": _now(), "line": content.count(b"\n") + 1, "bytes": len(tail)})


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All entries in order; each has an "event".

    A last line that a crash cut short comes back as {"event": "truncated", "line", "bytes"}. Raises JournalError,
    with file and line, when the file cannot be read or any other line is no JSON object with an event.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as e:
        raise JournalError(f"{path}: cannot read the journal: {e.strerror}") from e
    last = lines.pop()  # "" where the last line is whole
    entries = []
    for number, line in enumerate(lines, start=1):
        entry = _parse(line)
        if entry is None:
            raise JournalError(
                f'{path}, line {number}: damaged, expected one JSON object with an "event", found {_shown(line)}; '
                "put back a copy of the file, or take this line out by hand if its figures may be lost"
            )
        entries.append(entry)
    if last:
        entries.append(_parse(last) or {"event": TRUNCATED, "line": len(lines) + 1, "bytes": len(last)})
    return entries


def provenance() -> dict[str, Any]:
    """What made a figure: versions (of packages that are installed), commit of a checkout, host, command line."""
    about: dict[str, Any] = {"jeoparda": __version__}
    if commit := _commit():
        about["commit"] = commit
    about["python"] = platform.python_version()
    for name in _NAMED:
        try:
            about[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return about | {"host": socket.gethostname(), "platform": platform.platform(), "command": _command()}


def _command() -> str:
    """The command line as one would type it."""
    first = Path(sys.argv[0] or "python")
    name = "jeoparda" if first.name in ("__main__.py", "jeoparda") else str(first)
    return shlex.join([name, *sys.argv[1:]])


def _commit() -> str | None:
    """The commit of the checkout that this package lies in, with "-dirty" where files differ from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    # a caller's GIT_DIR (as in a hook) would name another checkout
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry, or None where the line is none. A nan that another program wrote reads as null."""
    try:
        entry = json.loads(line.decode(), parse_constant=lambda _: None)
    except ValueError:  # JSON and UTF-8 alike
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("event"), str) else None


def _plain(value: Any) -> Any:
    """`value` in JSON's types."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):  # numpy and torch, which this layer does not import
        return _plain(value.tolist())
    return str(value)


def _shown(line: bytes) -> str:
    text = line[:60].decode(errors="replace")
    return repr(text) + ("…" if len(line) > 60 else "")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
