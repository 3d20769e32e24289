"""Tar files read straight through, as they were published: .tar, .tar.gz or .tar.zst, nothing unpacked to disk.

A tar has no table of contents and a compressed one no way back, so everything here is one pass from the start. What
a patch consists of lies together in the published files; where it does not, its first members are held until its
last one comes, and beyond HELD_BYTES, or DISTANCE members, the tar is refused.

Source of the format: POSIX.1-2001 (ustar and pax headers); GNU tar manual, "Basic Tar Format" (long names).
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import IO, Any, NamedTuple

import zstandard

from jeoparda.errors import ArchiveError
from jeoparda.files import whole

HELD_BYTES = 1 << 30
DISTANCE = 100_000  # members
_BLOCK = 512
_BUFFER = 1 << 18  # of the compressed file: what comes of it may be many times as much
_AHEAD = 8  # blocks that are decompressed before they are asked for
_LONGEST_WINDOW = 1 << 31  # of zstd --long=31


class TruncatedTar(ArchiveError):
    """A tar that ends before its end: a download that was cut short. `reason`: what is wrong, without which tar."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; resume the download, or take what is whole with truncated=keep")
        self.reason = reason


class Member(NamedTuple):
    """A file in a tar. `content`: None where it was not asked for."""

    name: str
    size: int
    content: bytes | None


def members(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Member]:
    """The regular files of a tar in its order; only those `wanted` come with their content.

    TruncatedTar where it ends early, ArchiveError where it is no tar, damaged, or holds a path that leads out of it.
    """
    with _open(path) as stream:
        tape = _Tape(path, stream)
        said: dict[str, str] = {}  # of the next member, by the headers before its own
        while (header := tape.header()) is not None:
            kind = header[156:157]
            size = int(said["size"]) if "size" in said else tape.number(header[124:136])
            if kind in b"LKxg":
                said |= tape.about_next(kind, size)
                continue
            name, said = _safe(said.get("path") or _name(header), path), {}
            if kind in b"0\0007":
                yield Member(name, size, tape.content(name, size, wanted(name)))
            elif kind not in b"123456":  # links, devices and folders have no content
                raise ArchiveError(f"{path}: {name}: a member of type {kind!r}; expected regular files")
        tape.drain()


@contextmanager
def _open(path: Path) -> Iterator[Iterator[bytes]]:
    """The tar's own bytes in blocks; which compression it has is read off its first bytes, not its name."""
    with ExitStack() as opened:
        try:
            raw = opened.enter_context(open(path, "rb"))
            magic = raw.read(4)
            raw.seek(0)
        except OSError as e:
            raise ArchiveError(f"{path}: cannot be read: {e.strerror}") from e
        if magic == b"\x28\xb5\x2f\xfd" or magic[1:] == b"\x2a\x4d\x18":
            new: Callable[[], Any] = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW).decompressobj
        elif magic[:2] == b"\x1f\x8b":
            new = partial(zlib.decompressobj, 16 + zlib.MAX_WBITS)
        else:
            yield iter(lambda: raw.read(_BUFFER), b"")
            return
        yield opened.enter_context(closing(_ahead(_decoded(raw, new))))


def _ahead(blocks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """`blocks`, made by a thread that is a few ahead: decompression leaves the interpreter to who takes them."""
    made: Queue[tuple[bytes | None, Exception | None]] = Queue(_AHEAD)
    stop = Event()

    def put(block: bytes | None, error: Exception | None = None) -> None:
        while not stop.is_set():
            try:
                return made.put((block, error), timeout=0.1)
            except Full:
                continue

    def make() -> None:
        try:
            for block in blocks:
                put(block)
                if stop.is_set():
                    return
            put(None)
        except Exception as e:  # it is raised where the blocks are taken
            put(None, e)

    thread = Thread(target=make, name="decompress", daemon=True)
    thread.start()
    try:
        while True:
            block, error = made.get()
            if error:
                raise error
            if block is None:
                return
            yield block
    finally:
        stop.set()
        thread.join()


def _decoded(raw: IO[bytes], decoder: Callable[[], Any]) -> Iterator[bytes]:
    """All of a compressed file, of one frame or many; EOFError after the last byte of one that is cut short."""
    frame = None
    while block := raw.read(_BUFFER):
        while block:
            frame = frame or decoder()
            yield frame.decompress(block)
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise EOFError


@dataclass
class _Tape:
    """A stream of 512-byte blocks. `at`: bytes read so far, uncompressed; `last`: the last whole member's name."""

    path: Path
    stream: Iterator[bytes]
    at: int = 0
    last: str = ""
    ahead: bytes = field(default=b"", repr=False)  # what the stream gave last, and how much of it is used
    used: int = 0
    cut: bool = False

    def take(self, n: int) -> bytes:
        """n bytes, or fewer at the end of the stream."""
        parts = [self.ahead[self.used : self.used + n]]
        self.used += len(parts[0])
        lacks = n - len(parts[0])
        while lacks > 0 and self._refill():
            parts.append(self.ahead[:lacks])
            self.used = len(parts[-1])
            lacks -= self.used
        self.at += n - lacks
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _refill(self) -> bool:
        try:
            self.ahead, self.used = next(filter(None, self.stream), b""), 0
            return bool(self.ahead)
        except EOFError:
            self.cut = True  # who reads on finds too little
            return False
        except (zlib.error, zstandard.ZstdError, OSError) as e:
            raise ArchiveError(
                f"{self.path}: damaged: cannot be decompressed beyond byte {self.at} of the tar ({e}); {self.whole}; "
                "compare its checksum with the published one and download it again"
            ) from e

    def header(self) -> bytes | None:
        """The next header, None at the mark that ends a tar."""
        block = self.take(_BLOCK)
        if len(block) < _BLOCK:
            raise self.truncated("expected another member or the mark at the end")
        if not any(block):
            return None
        # the checksum counts its own eight bytes as blanks
        if self.number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            raise self.strange("no header")
        return block

    def number(self, text: bytes) -> int:
        """A header's number: octal digits, or in base 256 where the first bit is set."""
        if text[0] & 0x80:
            return int.from_bytes(text[1:], "big")
        try:
            return int(text.split(b"\0", 1)[0].strip() or b"0", 8)
        except ValueError as e:
            raise self.strange("no number in a header") from e

    def about_next(self, kind: bytes, size: int) -> dict[str, str]:
        """What a GNU long-name block or a pax header says of the next member. A global one (g) says nothing here."""
        content = self.read(size, "a header")
        try:
            return _pax(content) if kind == b"x" else {"path": _text(content.rstrip(b"\0"))} if kind == b"L" else {}
        except (ValueError, IndexError) as e:
            raise self.strange("a damaged pax header") from e

    def content(self, name: str, size: int, wanted: bool) -> bytes | None:
        found = None
        if wanted:
            found = self.read(size, name)
        else:
            self.skip(size, name)
        self.last = name
        return found

    def read(self, size: int, name: str) -> bytes:
        content = self.take(size)
        if len(content) < size:
            raise self.truncated(f"{name} has {len(content)} of its {size} bytes")
        self.take(-size % _BLOCK)
        return content

    def skip(self, size: int, name: str) -> None:
        lacks = size + -size % _BLOCK
        while lacks > 0:
            found = len(self.take(min(lacks, _BUFFER)))
            if not found:
                raise self.truncated(f"{name} lacks {lacks} of its {size} bytes")
            lacks -= found

    def drain(self) -> None:
        """To the end, so that the compression's own checksums are compared."""
        while self._refill():
            pass
        if self.cut:
            raise self.truncated("its compression lacks its end")

    def truncated(self, found: str) -> TruncatedTar:
        where = f"ends too early, at byte {self.at} of the tar ({self.path.stat().st_size} bytes on disk)"
        return TruncatedTar(self.path, f"{where}: {found}; {self.whole}")

    def strange(self, found: str) -> ArchiveError:
        what = "damaged: compare its checksum with the published one" if self.last else "neither .tar, .gz nor .zst"
        return ArchiveError(f"{self.path}: {found} before byte {self.at} of the tar ({what}); {self.whole}")

    @property
    def whole(self) -> str:
        return f"the last whole member is {self.last}" if self.last else "no member before it"


def _pax(content: bytes) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n" that matter here."""
    found = {}
    while content:
        length = int(content.split(b" ", 1)[0])
        key, _, value = content[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        found[key] = _text(value)
        content = content[length:] if length > 0 else b""
    return {k.decode(): v for k, v in found.items() if k in (b"path", b"size")}


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _safe(name: str, path: Path) -> str:
    """A member's path without a leading "./"."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise ArchiveError(f"{path}: member {name!r} leads out of the archive; expected paths below one folder")
    return name if parts[0] != "." and "" not in parts else "/".join(p for p in parts if p not in ("", "."))


@dataclass(frozen=True)
class Bundle:
    """A patch's folder in a tar. `files`: name -> content, of those asked for; `missing`: names it should have."""

    folder: str
    files: dict[str, bytes]
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.rpartition("/")[2]


def bundles(
    path: Path,
    endings: tuple[str, ...],
    wanted: Callable[[str], bool] = lambda name: True,
    held_bytes: int = HELD_BYTES,
    distance: int = DISTANCE,
) -> Iterator[Bundle]:
    """The patches of a tar, each when its last file has come: files FOLDER/PATCH/PATCH+ending for each of `endings`.

    Two passes give the same bundles in the same order, whatever is wanted. A patch that lacks files comes when it is
    `distance` members behind, or at the end, in a tar cut short before the error.
    """
    pending: dict[str, _Pending] = {}  # the one that was added to last stands last
    given_up: set[str] = set()
    held = 0
    try:
        for number, member in enumerate(members(path, wanted)):
            folder, _, file = member.name.rpartition("/")
            patch = folder.rpartition("/")[2]
            if not (patch and file.startswith(patch) and file[len(patch) :] in endings):
                continue
            if folder in given_up:
                raise ArchiveError(_interleaved(path, folder, f"members {distance} or more apart"))
            pending[folder] = entry = pending.pop(folder, None) or _Pending()
            held += entry.add(file, member, number)
            if len(entry.sizes) == len(endings):
                held -= sum(pending.pop(folder).sizes.values())
                yield Bundle(folder, entry.files)
            oldest = next(iter(pending), "")
            if oldest and number - pending[oldest].number >= distance:
                late = pending.pop(oldest)
                held -= sum(late.sizes.values())
                given_up.add(oldest)
                yield late.bundle(oldest, endings)
            if held > held_bytes:
                raise ArchiveError(_interleaved(path, oldest, f"{held} bytes of {len(pending)} patches in between"))
    except TruncatedTar:
        yield from (entry.bundle(folder, endings) for folder, entry in pending.items())
        raise
    yield from (entry.bundle(folder, endings) for folder, entry in pending.items())


@dataclass
class _Pending:
    files: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    number: int = 0  # of the member that came last

    def add(self, file: str, member: Member, number: int) -> int:
        """How many bytes more are held; a file that comes twice replaces itself, as tar does."""
        more = member.size - self.sizes.get(file, 0)
        self.sizes[file], self.number = member.size, number
        if member.content is not None:
            self.files[file] = member.content
        return more

    def bundle(self, folder: str, endings: tuple[str, ...]) -> Bundle:
        patch = folder.rpartition("/")[2]
        return Bundle(folder, self.files, tuple(patch + e for e in endings if patch + e not in self.sizes))


def _interleaved(path: Path, folder: str, found: str) -> str:
    return (
        f"{path}: the files of {folder} do not lie together ({found}), as those of the published archives do; "
        "unpack it and ingest the folder, or pack it anew with tar --sort=name"
    )


@dataclass
class Finder:
    """Looks bundles up by folder in the order of the tar. `keep`: whether those passed over are kept for later."""

    path: Path
    stream: Iterator[Bundle]
    keep: bool = False
    passed: dict[str, Bundle] = field(default_factory=dict)
    held: int = 0

    def find(self, folder: str) -> dict[str, bytes]:
        """{path in the tar: content} of that patch."""
        found = self.passed.pop(folder, None)
        if found:
            self.held -= _size(found)
        else:
            found = self._seek(folder)
        return {f"{folder}/{name}": content for name, content in found.files.items()}

    def _seek(self, folder: str) -> Bundle:
        for bundle in self.stream:
            if bundle.folder == folder:
                return bundle
            if self.keep:
                self.passed[bundle.folder] = bundle
                self.held += _size(bundle)
            if self.held > HELD_BYTES:
                raise ArchiveError(
                    f"{self.path}: its patches are in another order than the images': {self.held} bytes passed before "
                    f"{folder} came; unpack it, it is small"
                )
        raise ArchiveError(f"{self.path}: {folder} is no longer where it was when the ingest was planned; start anew")


def _size(bundle: Bundle) -> int:
    return sum(map(len, bundle.files.values()))


# ---- writing


@contextmanager
def packed(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A tar to add files to, compressed as its name says; it appears at `path` when it is whole. The same files give
    the same bytes: no times, no owners."""
    with whole(path) as draft, ExitStack() as opened:
        stream: Any = opened.enter_context(open(draft, "wb"))
        if path.name.endswith(".gz"):
            stream = opened.enter_context(gzip.GzipFile("", "wb", 6, stream, mtime=0))
        elif path.name.endswith(".zst"):
            stream = opened.enter_context(zstandard.ZstdCompressor(3, write_checksum=True).stream_writer(stream))
        tar = opened.enter_context(tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT))

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all

        yield add
