"""The page: figures as words, drawings and tables, put into the template."""

import math
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from jeoparda import __version__
from jeoparda.report import figures
from jeoparda.report.figures import Series
from jeoparda.report.gather import NAN, ClassFigures, Content, Epoch, Evaluation, Training

MANY_RANKS = 8  # more than this fold away
_MISTAKES = 5  # the most frequent ones are named
_SPACE = "\N{NARROW NO-BREAK SPACE}"
_PARTS = ("compute", "communication", "feed", "checkpoint")  # of an epoch's split_s, as they stack
_NAMES = {"feed": "waiting for the feed"}
_PAINTS = {"compute": "c1", "communication": "c2", "feed": "c3", "checkpoint": "c4", "other": "c5", "validation": "c6"}


@dataclass(frozen=True)
class Tile:
    """A headline figure and what it is a figure of."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Chart:
    """A drawing and the sentence beneath it."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Part:
    """A part of the run's time."""

    label: str
    paint: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Rank:
    """A rank over the whole run. `waiting`: part of its training time spent waiting for the feed. `utilisation`: of its
    accelerator, mean over the epochs."""

    number: int
    images_per_s: float
    waiting: float
    utilisation: float


def render(content: Content, title: str) -> str:
    """The page. Everything that is not this package's own text is escaped."""
    environment = Environment(
        loader=PackageLoader("jeoparda.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "f3": f3,
        "count": count,
        "duration": duration,
        "percent": percent,
        "width": width,
        "code": code,
    }
    t, e = content.training, content.evaluation
    template = environment.get_template("page.html.j2")
    return template.render(
        title=title,
        style=Markup(environment.loader.get_source(environment, "page.css")[0]),  # type: ignore[union-attr]
        version=__version__,
        t=t,
        e=e,
        maps=content.maps,
        notes=[*t.notes, *content.notes],
        warnings=[(m.scene, w) for m in content.maps for w in m.warnings],
        lead=lead(t, e),
        tiles=tiles(t, e),
        learning=_charts(t, _learning(t), "learning"),
        throughput=_charts(t, _throughput(t), "throughput"),
        parts=parts(t),
        ranks=ranks(t),
        utilisation=utilisation(t),
        many_ranks=MANY_RANKS,
        classes=_class_notes(e),
        rare=rare_below(e),
        hierarchy=hierarchy(e),
        mistakes=mistakes(e),
        evaluate=_command("evaluate", t),
        predict=_command("predict", t),
        facts=facts(t, e),
        recipe=t.recipe or _recipe(t),
    )


def _command(stage: str, t: Training) -> str:
    return f"jeoparda recipe {stage} > {stage}.yaml\njeoparda {stage} {stage}.yaml run={shlex.quote(str(t.folder))}"


# ---- words


def f3(value: float) -> str:
    """A ratio with three digits, or a dash."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def count(value: float) -> str:
    """An integer in groups of three, with narrow spaces that do not break."""
    return f"{value:,.0f}".replace(",", _SPACE) if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """A share; small ones are not rounded to nothing."""
    if not math.isfinite(value):
        return "–"
    return f"<{_SPACE}0.1{_SPACE}%" if 0 < value < 0.001 else f"{value * 100:.{0 if value >= 0.0995 else 1}f}{_SPACE}%"


def width(value: float) -> str:
    """A share as a CSS length."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}%" if math.isfinite(value) else "0%"


def code(text: str) -> Markup:
    """`text`, escaped, with what stands between backquotes set as code."""
    pieces = [Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(text.split("`"))]
    return Markup("").join(pieces)


def duration(seconds: float) -> str:
    """Seconds in the two largest units that say it."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f}{_SPACE}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        whole, rest = divmod(round(seconds), 60)
        return f"{whole}{_SPACE}min" + (f" {rest}{_SPACE}s" if whole < 10 and rest else "")
    hours, rest = divmod(minutes, 60)
    return f"{hours}{_SPACE}h" + (f" {rest}{_SPACE}min" if rest else "")


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 100 else count(value)


def _plural(n: int, one: str, many: str = "") -> str:
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def lead(t: Training, e: Evaluation | None) -> str:
    """The run in a few sentences."""
    s = t.start
    model, patches, ranks_ = s.get("model"), s.get("train_patches"), s.get("ranks")
    if not t.epochs:
        return f"{model or 'A model'}, no epoch finished yet."
    text = str(model or "A model")
    if isinstance(s.get("bands"), list) and isinstance(s.get("classes"), list):
        text += f" for {_plural(len(s['bands']), 'band')} and {_plural(len(s['classes']), 'class', 'classes')}"
    text += f", trained for {_plural(len(t.epochs), 'epoch')}"
    if isinstance(patches, int):
        text += f" on {_plural(patches, 'patch', 'patches')}"
    if isinstance(ranks_, int):
        text += f" by {_plural(ranks_, 'rank')} ({s.get('backend', 'backend unknown')})"
    text += f" in {duration(wall_s(t))}."
    if e:
        reached = f"{_micro(e)} {f3(e.micro.get('f1', NAN))}"
        text += f" On {_plural(e.patches, 'patch', 'patches')} of the split “{e.split}” it reaches {reached}."
    left = (_planned(s) or 0) - len(t.epochs)
    if left > 0:
        text += f" {_plural(left, 'epoch')} of the {_planned(s)} in the recipe {'is' if left == 1 else 'are'} to come."
    return text


def _micro(e: Evaluation | None) -> str:
    """What micro F1 is called: with one class a patch it is the share of patches that are right."""
    return "accuracy" if e and e.single else "micro F1"


def _planned(start: dict[str, Any]) -> int | None:
    recipe = start.get("recipe")
    epochs = recipe.get("epochs") if isinstance(recipe, dict) else None
    return epochs if isinstance(epochs, int) else None


def wall_s(t: Training) -> float:
    """Seconds of training and validation in all epochs."""
    return sum(v for e in t.epochs for v in (e.seconds, e.val_seconds) if math.isfinite(v))


def rank_hours(t: Training) -> float:
    """Hours of training and validation, times the ranks that took part in each epoch."""
    spent = ((_or(e.seconds, 0.0) + _or(e.val_seconds, 0.0)) * max(1, len(e.per_rank)) for e in t.epochs)
    return sum(spent) / 3600


def tiles(t: Training, e: Evaluation | None) -> list[Tile]:
    """The headline figures."""
    s = t.start
    if e:
        scores, where = (e.micro.get("f1", NAN), e.macro.get("f1", NAN), e.map), f"on split {e.split}"
    else:
        val = t.epochs[-1].val if t.epochs else {}
        scores = (val.get("micro_f1", NAN), val.get("macro_f1", NAN), val.get("map", NAN))
        where = f"validation, epoch {t.epochs[-1].number}" if t.epochs else "no epoch yet"
    hours = f"{rank_hours(t):.3g} rank-hours" if t.epochs else ""
    stops = f"; resumed {_plural(len(t.resumed), 'time')}" if t.resumed else ""
    return [
        *(Tile(n, f3(v), where) for n, v in zip((_micro(e), "macro F1", "mAP"), scores, strict=True)),
        _rate_tile(t),
        Tile(
            "patches",
            count(_float(s.get("train_patches"))),
            f"training; {count(_float(s.get('val_patches')))} validation",
        ),
        Tile("ranks", count(_float(s.get("ranks"))), "; ".join(filter(None, [str(s.get("backend") or ""), hours]))),
        Tile("time", duration(wall_s(t)), f"{_plural(len(t.epochs), 'epoch')}, training and validation{stops}"),
    ]


def _rate_tile(t: Training) -> Tile:
    epochs = steady(t.epochs)
    if not epochs:
        return Tile("images/s", "–", "no epoch yet")
    each = statistics.median(e.images_per_s / max(1, len(e.per_rank)) for e in epochs)
    note = f", {_rate(each)} a rank" if any(len(e.per_rank) > 1 for e in epochs) else ""
    return Tile("images/s", _rate(statistics.median(e.images_per_s for e in epochs)), f"training, median{note}")


def steady(epochs: Sequence[Epoch]) -> list[Epoch]:
    """Epochs with a rate, without the first where there are others: it warms up."""
    found = [e for e in epochs if math.isfinite(e.images_per_s)]
    return found[1:] if len(found) > 2 else found


# ---- drawings


def _charts(t: Training, makers: list[Callable[[], tuple[str, str]]], prefix: str) -> list[Chart]:
    if not t.epochs:
        return []
    made = [make() for make in makers]
    return [Chart(Markup(figures.unique_ids(svg, f"{prefix}{i}")), caption) for i, (svg, caption) in enumerate(made)]


def _learning(t: Training) -> list[Callable[[], tuple[str, str]]]:
    numbers = [e.number for e in t.epochs]

    def loss() -> tuple[str, str]:
        train, val = [e.loss for e in t.epochs], [e.val.get("loss", NAN) for e in t.epochs]
        series = [Series("training", train, "c1"), Series("validation", val, "c2")]
        alt = f"Loss over epochs: training {_ends(train)}, validation {_ends(val)}."
        return figures.curves("loss", numbers, series, alt=alt, resumed=t.resumed), (
            "Training loss is the recipe's, the mean over an epoch while weights move, with augmentation; validation "
            "loss is plain cross-entropy, measured after it. Where the recipe's is another, the two cannot be compared."
        )

    def f1() -> tuple[str, str]:
        names = (("micro F1", "micro_f1", "c1"), ("mAP", "map", "c3"), ("macro F1", "macro_f1", "c2"))
        series = [Series(n, [e.val.get(k, NAN) for e in t.epochs], p) for n, k, p in names]
        alt = "Validation scores over epochs: " + ", ".join(f"{s.label} {_ends(s.values)}" for s in series) + "."
        best = max(t.epochs, key=lambda e: _or(e.val.get("micro_f1", NAN), -1.0))
        return figures.curves("validation score", numbers, series, alt=alt, top=1.0, resumed=t.resumed), (
            f"Best micro F1 {f3(best.val.get('micro_f1', NAN))}, after epoch {best.number}. "
            "Macro means weigh rare classes like frequent ones."
        )

    def lr() -> tuple[str, str]:
        values = [e.lr for e in t.epochs]
        most = max((v for v in values if math.isfinite(v) and v > 0), default=1.0)
        power = math.floor(math.log10(most))
        unit = "" if -2 <= power <= 1 else f", ×10{str(power).translate(_RAISED)}"
        scaled = [v / 10**power for v in values] if unit else values
        alt = f"Learning rate at the end of each epoch: {_ends(values, '.2g')}."
        series = [Series("", scaled, "c1", 2)]
        return figures.curves(f"learning rate{unit}", numbers, series, alt=alt, resumed=t.resumed), (
            "At the end of each epoch, for the global batch."
        )

    return [loss, f1, lr]


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _throughput(t: Training) -> list[Callable[[], tuple[str, str]]]:
    numbers = [e.number for e in t.epochs]
    most = max((len(e.per_rank) for e in t.epochs), default=0)

    def total() -> tuple[str, str]:
        values = [e.images_per_s for e in t.epochs]
        alt = f"Images per second over epochs, all ranks together: {_ends(values, '.1f')}."
        series = [Series("all ranks", values, "c1", 1)]
        caption = "All ranks together, validation not counted."
        return figures.curves("images/s", numbers, series, alt=alt, resumed=t.resumed), caption

    def per_rank() -> tuple[str, str]:
        rates = [[*e.per_rank, *[NAN] * (most - len(e.per_rank))] for e in t.epochs]
        means = [r.images_per_s for r in ranks(t)]
        alt = f"Images per second of each of {most} ranks, mean from {min(means):.1f} to {max(means):.1f}."
        gap = (max(means) - min(means)) / max(means) if max(means) else 0.0
        return figures.rank_rates(numbers, rates, alt=alt, resumed=t.resumed), (
            f"Slowest and fastest rank differ by {percent(gap)} over the run. Ranks step together, so a slow one "
            "holds up all."
        )

    def time() -> tuple[str, str]:
        columns = {k: [_split(e).get(k, 0.0) for e in t.epochs] for k in _PAINTS}
        longest = max(sum(c) for c in zip(*columns.values(), strict=True))
        unit, scale = ("s", 1.0) if longest < 180 else ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
        series = [Series(k, [v / scale for v in c], _PAINTS[k]) for k, c in columns.items() if any(c)]
        said = ", ".join(f"{p.label} {percent(p.share)}" for p in parts(t))
        alt = f"Time of each epoch in parts; over the run {said}."
        return figures.stacked(f"time of an epoch on rank 0, {unit}", numbers, series, alt=alt, resumed=t.resumed), (
            "Communication is what computing did not hide, waiting for the slowest rank included."
        )

    return [total, *([per_rank] if most > 1 else []), time]


def _ends(values: Sequence[float], form: str = ".3f") -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"from {finite[0]:{form}} to {finite[-1]:{form}}" if finite else "not known"


def _or(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else NAN


# ---- tables


def _split(e: Epoch) -> dict[str, float]:
    """Seconds of an epoch by part; "other" is what the clocks of the parts do not hold."""
    out = {k: _or(e.split_s.get(k, NAN), 0.0) for k in _PARTS}
    out["other"] = max(0.0, _or(e.seconds, 0.0) - sum(out.values()))
    out["validation"] = _or(e.val_seconds, 0.0)
    return out


def parts(t: Training) -> list[Part]:
    """Where the run's time went, by rank 0's clock."""
    sums = {k: sum(_split(e)[k] for e in t.epochs) for k in _PAINTS}
    total = sum(sums.values())
    return [Part(_NAMES.get(k, k), _PAINTS[k], v, v / total) for k, v in sums.items() if v > 0]


def ranks(t: Training) -> list[Rank]:
    """Every rank's figures over the run; empty for a single one."""
    most = max((len(e.per_rank) for e in t.epochs), default=0)
    return [_rank(t, i) for i in range(most)] if most > 1 else []


def _rank(t: Training, i: int) -> Rank:
    rates = [e.per_rank[i] for e in steady(t.epochs) if i < len(e.per_rank) and math.isfinite(e.per_rank[i])]
    waits = [(e.wait_s[i], e.seconds) for e in t.epochs if i < len(e.wait_s) and math.isfinite(e.wait_s[i] + e.seconds)]
    seconds = sum(s for _, s in waits)
    return Rank(
        i,
        statistics.mean(rates) if rates else NAN,
        sum(w for w, _ in waits) / seconds if seconds else NAN,
        _mean([e.utilisation[i] for e in t.epochs if i < len(e.utilisation)]),
    )


def utilisation(t: Training) -> float:
    """Of the accelerators, mean over epochs and ranks; nan where the journal does not say."""
    return _mean([u for e in t.epochs for u in e.utilisation])


def _mean(values: list[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return statistics.mean(finite) if finite else NAN


def rare_below(e: Evaluation | None) -> int:
    """Classes with fewer patches than this are called rare: 1 % of the patches, at least 10."""
    return max(10, math.ceil(e.patches / 100)) if e else 0


def _class_notes(e: Evaluation | None) -> list[str]:
    """What the table's rows add up to."""
    if not e:
        return []
    absent = sum(c.support == 0 for c in e.classes)
    silent = [c.name for c in e.classes if c.support and not c.predicted]
    out = []
    if e.left_out:
        out.append(f"{_plural(e.left_out, 'patch', 'patches')} of the split with none of these classes left out.")
    if absent:
        out.append(f"{_plural(absent, 'class has', 'classes have')} no patch in this split and so no figures.")
    if silent:
        out.append(f"Never predicted: {'; '.join(silent)}.")
    return out


def hierarchy(e: Evaluation | None) -> list[tuple[int, ClassFigures]]:
    """(depth, class): each class of the coarsest CORINE level in the nomenclature's order, its members beneath it,
    those of the finest by falling support. Empty without levels."""
    if not e or not e.levels:
        return []
    chain = [*e.levels.values(), e.classes]

    def below(depth: int, parent: str) -> Iterator[tuple[int, ClassFigures]]:
        for c in chain[depth]:
            if depth == 0 or c.parent == parent:
                yield depth, c
                if depth + 1 < len(chain):
                    yield from below(depth + 1, c.name)

    return list(below(0, ""))


def mistakes(e: Evaluation | None) -> list[tuple[str, str, int]]:
    """(true class, taken for, patches): the most frequent ones of a confusion."""
    if not e or not e.confusion:
        return []
    names = [c.name for c in e.confused]
    wrong = [(names[i], names[j], n) for i, row in enumerate(e.confusion) for j, n in enumerate(row) if n and i != j]
    return sorted(wrong, key=lambda x: (-x[2], x))[:_MISTAKES]


def _predicted_from(e: Evaluation) -> str:
    if e.single:
        return "the most probable class"
    return "thresholds of each class" if e.tuned else f"threshold {e.threshold:g}"


def facts(t: Training, e: Evaluation | None) -> list[tuple[str, str]]:
    """What the figures come from."""
    s = t.start
    pairs = [
        ("run", str(t.folder)),
        ("store", s.get("store")),
        ("store digest", s.get("store_digest")),
        ("bands", ", ".join(map(str, s["bands"])) if isinstance(s.get("bands"), list) else None),
        ("model", s.get("model")),
        ("parameters", count(s["parameters"]) if isinstance(s.get("parameters"), int) else None),
        ("feed", s.get("feed")),
        ("device", s.get("device")),
        ("evaluated", f"{e.checkpoint}, split {e.split}, {_predicted_from(e)}" if e else None),
        ("jeoparda", s.get("jeoparda")),
        ("commit", s.get("commit")),
        *((n, s.get(n)) for n in ("python", "torch", "horovod", "numpy", "h5py")),
        ("platform", s.get("platform")),
        ("first start to newest line", duration(t.elapsed_s) if t.resumed and math.isfinite(t.elapsed_s) else None),
    ]
    return [(n, str(v)) for n, v in pairs if v not in (None, "")]


def _recipe(t: Training) -> str:
    recipe = t.start.get("recipe")
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if isinstance(recipe, dict) else ""
