"""What a report tells of: a run's journal, its evaluation and map folders, read and checked."""

import base64
import binascii
import json
import math
import struct
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jeoparda.errors import JeopardaError
from jeoparda.journal import TRUNCATED, read

NAN = float("nan")
PICTURE_BYTES = 24 * 1024 * 1024  # larger pictures would make a page that no browser likes to open
_PNG = b"\x89PNG\r\n\x1a\n"


class ReportError(JeopardaError, OSError):
    """A run, evaluation or map folder that cannot be reported on."""


@dataclass(frozen=True)
class Picture:
    """A PNG as it stands in the page."""

    base64: str
    width_px: int
    height_px: int


@dataclass(frozen=True)
class Epoch:
    """One epoch's line. Figures that the journal lacks are nan."""

    number: int
    loss: float
    lr: float
    val: dict[str, float]
    images_per_s: float
    per_rank: list[float]  # images/s
    wait_s: list[float]  # per rank, waiting for the feed
    utilisation: list[float]  # of each rank's accelerator, after MLPerf Storage
    seconds: float
    val_seconds: float
    split_s: dict[str, float]  # where rank 0's training time went


@dataclass(frozen=True)
class Training:
    """A run's journal. `sessions`: the start and each resume; `resumed`: epochs that were done before each resume."""

    folder: Path
    sessions: list[dict[str, Any]]
    epochs: list[Epoch]
    resumed: list[int]
    recipe: str  # YAML, "" where the run folder has none
    notes: list[str]
    elapsed_s: float  # from the first start to the newest line

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def start(self) -> dict[str, Any]:
        """What the newest start or resume says of the run."""
        return self.sessions[-1] if self.sessions else {}


@dataclass(frozen=True)
class ClassFigures:
    """A class in the evaluation. `color`: CSS. `parent`: its class on the next CORINE level, "" without. tp, fp, fn,
    tn: patches. Figures are nan where they do not exist."""

    name: str
    color: str
    parent: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float
    ap: float
    tp: float
    fp: float
    fn: float
    tn: float
    threshold: float


@dataclass(frozen=True)
class Label:
    """A class at a sample patch. `score`: the model's probability, nan where it is not kept."""

    name: str
    color: str
    score: float


@dataclass(frozen=True)
class Sample:
    """A patch with its labels. `right`: true and predicted; `missed`: true only; `wrong`: predicted only."""

    id: str
    picture: Picture | None
    right: list[Label]
    missed: list[Label]
    wrong: list[Label]


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json. `left_out`: patches of the split without a class. `tuned`: classes have thresholds of their own.
    `samples_average`: means over patches. `classes` by falling support; `levels`: CORINE level -> its classes.
    `confusion`: (true class, predicted class) patches where each has one class, in the order of `confused`."""

    checkpoint: str
    split: str
    patches: int
    left_out: int
    single: bool
    threshold: float
    tuned: bool
    micro: dict[str, float]
    macro: dict[str, float]
    samples_average: dict[str, float]
    map: float
    classes: list[ClassFigures]
    levels: dict[int, list[ClassFigures]]
    confusion: list[list[int]]
    confused: list[ClassFigures]
    samples: list[Sample]
    samples_left_out: int


@dataclass(frozen=True)
class LegendEntry:
    """A class on a map. `share`: of the pixels that carry a class."""

    name: str
    color: str
    pixels: int
    share: float


@dataclass(frozen=True)
class Map:
    """One scene's map, newest line of the ledger. `missing`: sentences on pictures that are not there."""

    scene: str
    folder: Path
    source: str
    level: str
    time: str
    classes_tif: str
    probabilities_tif: str
    quicklook: Picture | None
    classmap: Picture | None
    legend: list[LegendEntry]
    warnings: list[str]
    missing: list[str]


@dataclass(frozen=True)
class Content:
    """All that the page shows."""

    training: Training
    evaluation: Evaluation | None
    maps: list[Map]
    notes: list[str] = field(default_factory=list)


def gather(run: Path, maps: list[Path], samples: int) -> Content:
    """Read a run folder and map folders; at most `samples` sample patches.

    Raises ReportError or JournalError, naming the file, where something is damaged or is no run or map folder.
    """
    notes: list[str] = []
    training = _training(run)
    found = [m for folder in maps for m in _maps(folder, notes)]
    return Content(training, _evaluation(run / "evaluation.json", samples), found, notes)


# ---- the journal


def _training(run: Path) -> Training:
    path = run / "journal.jsonl"
    if not path.is_file():
        raise ReportError(f"{run}: no journal.jsonl, so no run folder; give the `run` of a `jeoparda train`")
    entries = read(path)
    sessions: list[dict[str, Any]] = []
    resumed: list[int] = []
    notes: list[str] = []
    epochs: dict[int, Epoch] = {}
    for entry in entries:
        if entry["event"] in ("start", "resume"):
            if sessions:
                resumed.append(len(epochs))
            sessions.append(entry)
        elif entry["event"] == "epoch":
            epoch = _epoch(entry, len(epochs) + 1)
            epochs.setdefault(epoch.number, epoch)
        elif entry["event"] == TRUNCATED:
            notes.append(
                f"Line {entry.get('line', '?')} of journal.jsonl was cut short, as after a crash "
                f"({entry.get('bytes', '?')} bytes); what it said is not on this page."
            )
    if entries and entries[-1]["event"] == "stop" and entries[-1].get("reason") != "finished":
        reason = entries[-1].get("reason")
        notes.append(f"Training stopped early{f' ({reason})' if reason else ''}; the same command goes on with it.")
    recipe = run / "recipe.yaml"
    text = recipe.read_text(errors="replace") if recipe.is_file() else ""
    ordered = [epochs[n] for n in sorted(epochs)]
    return Training(run, sessions, ordered, resumed, text, notes, _elapsed_s(entries))


def _epoch(entry: dict[str, Any], position: int) -> Epoch:
    number = entry.get("epoch")
    return Epoch(
        number=number if isinstance(number, int) else position,
        loss=_number(entry.get("loss")),
        lr=_number(entry.get("lr")),
        val={k: _number(v) for k, v in _dict(entry.get("val")).items()},
        images_per_s=_number(entry.get("images_per_s")),
        per_rank=[_number(v) for v in _list(entry.get("images_per_s_per_rank"))],
        wait_s=[_number(v) for v in _list(entry.get("wait_s"))],
        utilisation=[_number(v) for v in _list(entry.get("utilisation_per_rank"))],
        seconds=_number(entry.get("seconds")),
        val_seconds=_number(entry.get("val_seconds")),
        split_s={k: _number(v) for k, v in _dict(entry.get("split_s")).items()},
    )


def _elapsed_s(entries: list[dict[str, Any]]) -> float:
    times = [t for t in (_time(e.get("time")) for e in entries if e["event"] != TRUNCATED) if t]
    try:
        return (max(times) - min(times)).total_seconds() if times else NAN
    except TypeError:  # some with a time zone, some without
        return NAN


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


# ---- the evaluation


def _evaluation(path: Path, samples: int) -> Evaluation | None:
    """The evaluation beside a journal; None where there is none yet."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(), parse_constant=lambda _: None)
    except json.JSONDecodeError as e:
        raise ReportError(f"{path}, line {e.lineno}: damaged ({e.msg}); run `jeoparda evaluate` again") from e
    except (OSError, UnicodeDecodeError) as e:
        raise ReportError(f"{path}: cannot be read: {e}; run `jeoparda evaluate` again") from e
    try:
        return _evaluated(found, samples)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ReportError(f"{path}: not what `jeoparda evaluate` writes ({type(e).__name__}: {e}); run it again") from e


def _evaluated(found: dict[str, Any], samples: int) -> Evaluation:
    classes = [_class(c) for c in found["classes"]]
    colors = {c.name: c.color for c in classes}
    chosen = found.get("samples", [])
    return Evaluation(
        checkpoint=str(found["checkpoint"]),
        split=str(found["split"]),
        patches=int(found["patches"]),
        left_out=int(found.get("left_out", 0)),
        single=found.get("task") == "single-label",
        threshold=_number(found.get("threshold")),
        tuned=found.get("thresholds") == "per-class",
        micro={k: _number(v) for k, v in found["micro"].items()},
        macro={k: _number(v) for k, v in found["macro"].items()},
        samples_average={k: _number(v) for k, v in _dict(found.get("samples_average")).items()},
        map=_number(found["map"]),
        classes=sorted(classes, key=lambda c: (-c.support, c.name)),
        levels={int(k): [_class(c) for c in v["classes"]] for k, v in sorted(_dict(found.get("levels")).items())},
        confusion=_square(found.get("confusion"), len(classes)),
        confused=classes,
        samples=[_sample(s, colors) for s in chosen[:samples]],
        samples_left_out=max(0, len(chosen) - samples),
    )


def _class(c: dict[str, Any]) -> ClassFigures:
    return ClassFigures(
        name=str(c["name"]),
        color=_color(c.get("color")),
        parent=_text(c.get("parent")),
        support=int(c["support"]),
        predicted=int(c["predicted"]),
        **{k: _number(c.get(k)) for k in ("precision", "recall", "f1", "ap", "tp", "fp", "fn", "tn", "threshold")},
    )


def _square(rows: Any, side: int) -> list[list[int]]:
    """(side, side) numbers, or nothing where there are none. ValueError for another shape."""
    found = [[int(v) for v in row] for row in _list(rows)]
    if found and [len(row) for row in found] != [side] * side:
        raise ValueError(f"the confusion of {side} classes has rows of {[len(row) for row in found]}")
    return found


def _sample(s: dict[str, Any], colors: dict[str, str]) -> Sample:
    truth, predicted, scores = s["truth"], s["predicted"], _dict(s.get("scores"))

    def labels(names: list[str]) -> list[Label]:
        found = [Label(n, colors.get(n, "transparent"), _number(scores.get(n))) for n in names]
        return sorted(found, key=lambda x: -x.score if math.isfinite(x.score) else 0.0)

    return Sample(
        id=str(s["id"]),
        picture=_embedded(s.get("png")),
        right=labels([n for n in truth if n in predicted]),
        missed=labels([n for n in truth if n not in predicted]),
        wrong=labels([n for n in predicted if n not in truth]),
    )


# ---- maps


def _maps(folder: Path, notes: list[str]) -> list[Map]:
    """The maps that a folder's ledger lists, each scene's newest line, in the order of the ledger."""
    ledger = folder / "ledger.jsonl"
    if not ledger.is_file():
        raise ReportError(f"{folder}: no ledger.jsonl, so no map folder; give the `out` of a `jeoparda predict`")
    newest: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(read(ledger), start=1):
        if entry["event"] == TRUNCATED:
            notes.append(
                f"Line {entry.get('line', number)} of {ledger} was cut short, as after a crash; "
                "its map is not on this page."
            )
        elif entry["event"] == "map":
            if "scene" not in entry:
                raise ReportError(f'{ledger}, line {number}: a map without a "scene"; run `jeoparda predict` again')
            newest[str(entry["scene"])] = entry
    if not newest:
        notes.append(f"{folder} holds no finished map yet; `jeoparda predict` writes them.")
    return [_map(folder, entry) for entry in newest.values()]


def _map(folder: Path, entry: dict[str, Any]) -> Map:
    missing: list[str] = []
    return Map(
        scene=str(entry["scene"]),
        folder=folder,
        source=_text(entry.get("source")),
        level=_text(entry.get("level")),
        time=_text(entry.get("time")),
        classes_tif=_text(entry.get("classes_tif")),
        probabilities_tif=_text(entry.get("probabilities_tif")),
        quicklook=_file(folder, entry.get("quicklook_png"), "true-colour quicklook", missing),
        classmap=_file(folder, entry.get("classmap_png"), "class map picture", missing),
        legend=_legend(entry),
        warnings=[str(w) for w in _list(entry.get("warnings"))],
        missing=missing,
    )


def _legend(entry: dict[str, Any]) -> list[LegendEntry]:
    """The classes that have pixels on the map, by falling count."""
    pixels = {str(k): int(v) for k, v in _dict(entry.get("pixels")).items() if isinstance(v, (int, float)) and v > 0}
    colors = {str(e.get("name")): _color(e.get("color")) for e in _list(entry.get("legend")) if isinstance(e, dict)}
    total = sum(pixels.values())
    ordered = sorted(pixels.items(), key=lambda item: (-item[1], item[0]))
    return [LegendEntry(n, colors.get(n, "transparent"), count, count / total) for n, count in ordered]


def _file(folder: Path, name: Any, what: str, missing: list[str]) -> Picture | None:
    """The picture `name` in `folder`, or None with a sentence in `missing` that says why not."""
    if not name:
        missing.append(f"The ledger names no {what}; `jeoparda predict` writes one when it maps the scene again.")
        return None
    path = folder / str(name)
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= PICTURE_BYTES else b""
    except OSError as e:
        missing.append(f"The {what} {path} cannot be read ({e.strerror}); `jeoparda predict` writes it again.")
        return None
    if size > PICTURE_BYTES:
        missing.append(f"The {what} {path} is left out: {size >> 20} MiB, more than {PICTURE_BYTES >> 20} for a page.")
        return None
    picture = _picture(content)
    if picture is None:
        missing.append(f"The {what} {path} is no PNG; `jeoparda predict` writes it again.")
    return picture


# ---- values


def _embedded(text: Any) -> Picture | None:
    try:
        return _picture(base64.b64decode(text, validate=True)) if isinstance(text, str) else None
    except binascii.Error:
        return None


def _picture(content: bytes) -> Picture | None:
    """A PNG with the size that its header gives; None where the bytes are no PNG."""
    if not content.startswith(_PNG) or content[12:16] != b"IHDR" or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])
    return Picture(base64.b64encode(content).decode(), width, height) if width and height else None


def _color(value: Any) -> str:
    """CSS of [red, green, blue] in 0..255; transparent where it is none (nothing else may reach a style)."""
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value):
        return "#{:02x}{:02x}{:02x}".format(*value)
    return "transparent"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else NAN


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
