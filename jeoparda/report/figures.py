"""Curves and bars as inline SVG that takes its colours and fonts from the page's CSS.

Matplotlib draws with stand-in colours; in the SVG they become CSS variables, so that one drawing serves light,
dark and paper. Text stays text. The same numbers give the same bytes.
"""

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# CSS variable -> the colour that stands for it in matplotlib; none is black, which SVG writers leave out
_STAND_IN = {
    name: f"#01{i:02x}fe"
    for i, name in enumerate(("ink", "muted", "line", "surface", "c1", "c2", "c3", "c4", "c5", "c6"))
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jeoparda",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same widths everywhere
    "font.size": 10.0,
    "text.color": _STAND_IN["ink"],
    "axes.edgecolor": _STAND_IN["muted"],
    "axes.labelcolor": _STAND_IN["muted"],
    "axes.linewidth": 0.7,
    "xtick.color": _STAND_IN["muted"],
    "ytick.color": _STAND_IN["muted"],
    "axes.unicode_minus": True,
    "path.simplify": False,
}
_SIZE_IN = (4.5, 2.95)
_BOX = (0.105, 0.165, 0.585, 0.69)  # left, bottom, width, height of the axes; the rest is for labels
_LABEL_GAP = 0.098  # least distance of two labels, in heights of the axes
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.6)), (0, (6, 1.5, 1, 1.5)))
_RANK_LINES = 6  # more ranks than this are drawn as a band


@dataclass(frozen=True)
class Series:
    """A line: `values` at the epochs; `paint` one of the page's colours c1 to c6."""

    label: str
    values: Sequence[float]
    paint: str
    digits: int = 3


def curves(
    what: str,
    epochs: Sequence[int],
    series: Sequence[Series],
    *,
    alt: str,
    top: float | None = None,
    resumed: Sequence[int] = (),
) -> str:
    """Lines over epochs, from zero up, each with its name and last value at its end.

    `what`: quantity and unit. `top`: end of the value axis where it has one. `resumed`: epochs after which the run
    was interrupted.
    """
    with style.context(["default", _STYLE]):
        figure, axes = _axes(what, epochs)
        for i, s in enumerate(series):
            axes.plot(
                epochs,
                s.values,
                color=_STAND_IN[s.paint],
                linestyle=_DASHES[i % len(_DASHES)],
                linewidth=1.7,
                marker="o" if len(epochs) == 1 else None,
                markersize=4,
                solid_capstyle="round",
            )
        _from_zero(axes, [v for s in series for v in s.values], top)
        _mark_resumed(axes, resumed)
        last = [(_last(s.values), f"{s.label}", f"{_last(s.values):.{s.digits}f}", s.paint) for s in series]
        _label_ends(axes, [x for x in last if math.isfinite(x[0])])
        return _svg(figure, alt)


def rank_rates(
    epochs: Sequence[int], rates: Sequence[Sequence[float]], *, alt: str, resumed: Sequence[int] = ()
) -> str:
    """images/s of each rank over epochs. rates: (epoch, rank), nan where a rank was not there.

    Few ranks are lines; many are the band from the slowest to the fastest with the median.
    """
    by_rank = list(zip(*rates, strict=True))
    if len(by_rank) <= _RANK_LINES:
        series = [Series(f"rank {i}", v, f"c{i % 6 + 1}", 1) for i, v in enumerate(by_rank)]
        return curves("images/s of each rank", epochs, series, alt=alt, resumed=resumed)
    ordered = [sorted(v for v in row if math.isfinite(v)) or [math.nan] for row in rates]
    low, middle, high = [o[0] for o in ordered], [o[len(o) // 2] for o in ordered], [o[-1] for o in ordered]
    with style.context(["default", _STYLE]):
        figure, axes = _axes("images/s of a rank", epochs)
        axes.fill_between(epochs, low, high, color=_STAND_IN["c1"], alpha=0.25, linewidth=0)
        axes.plot(epochs, middle, color=_STAND_IN["c1"], linewidth=1.7)
        _from_zero(axes, high, None)
        _mark_resumed(axes, resumed)
        ends = [(high, "fastest"), (middle, "median"), (low, "slowest")]
        _label_ends(axes, [(v[-1], n, f"{v[-1]:.1f}", "c1") for v, n in ends if math.isfinite(v[-1])])
        return _svg(figure, alt)


def stacked(what: str, epochs: Sequence[int], parts: Sequence[Series], *, alt: str, resumed: Sequence[int] = ()) -> str:
    """A bar an epoch, of parts that add up; parts are named at the last bar where they are thick enough."""
    with style.context(["default", _STYLE]):
        figure, axes = _axes(what, epochs)
        base = [0.0] * len(epochs)
        wide = len(epochs) > 60
        ends = []
        for part in parts:
            heights = [v if math.isfinite(v) else 0.0 for v in part.values]
            top = [b + h for b, h in zip(base, heights, strict=True)]
            if wide:  # so many bars that they touch: one shape, without seams
                edges = [epochs[0] - 0.5, *(e + 0.5 for e in epochs)]
                axes.stairs(top, edges, baseline=base, fill=True, color=_STAND_IN[part.paint])
            else:
                edge: dict[str, Any] = {"edgecolor": _STAND_IN["surface"], "linewidth": 0.6}
                axes.bar(epochs, heights, bottom=base, width=0.74, color=_STAND_IN[part.paint], **edge)
            ends.append((base[-1] + heights[-1] / 2, part.label, "", part.paint, heights[-1]))
            base = top
        _from_zero(axes, base, None)
        axes.set_xlim(epochs[0] - 0.6, epochs[-1] + 0.6)
        _mark_resumed(axes, resumed)
        _label_ends(axes, [e[:4] for e in ends if e[4] > 0.03 * base[-1]])
        return _svg(figure, alt)


def _axes(what: str, epochs: Sequence[int]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_IN)
    axes = figure.add_axes(_BOX)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    figure.text(0.0, 0.955, what, ha="left", va="center", color=_STAND_IN["ink"], fontsize=11)
    axes.set_xlabel("epoch", loc="right", labelpad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=_STAND_IN["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.tick_params(axis="x", length=3, width=0.7)
    whole = MaxNLocator(6, integer=True, min_n_ticks=1).tick_values(epochs[0], epochs[-1])
    axes.set_xticks([v for v in whole if epochs[0] <= v <= epochs[-1]])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    pad = 0.03 * (epochs[-1] - epochs[0]) or 0.5
    axes.set_xlim(epochs[0] - pad, epochs[-1] + pad)
    return figure, axes


def _from_zero(axes: Axes, values: Sequence[float], top: float | None) -> None:
    """The value axis from zero (or below) to `top`, or to the first tick above all values."""
    finite = [v for v in values if math.isfinite(v)]
    least, most = min([0.0, *finite]), max([0.0, *finite]) or 1.0
    end = max(top, most) if top is not None else most
    ticks = axes.yaxis.get_major_locator().tick_values(least, end)
    low = max(v for v in ticks if v <= least)
    high = min(v for v in ticks if v >= end * (1 - 1e-9))
    axes.set_ylim(low, high)
    axes.set_yticks([v for v in ticks if low <= v <= high * (1 + 1e-9)])


def _mark_resumed(axes: Axes, resumed: Sequence[int]) -> None:
    for epoch in resumed:
        axes.axvline(epoch + 0.5, color=_STAND_IN["muted"], linewidth=0.9, linestyle=(0, (2, 2)))


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str, str]]) -> None:
    """Names right of the axes at the height where their lines end. labels: (value, name, figure, paint)."""
    low, high = axes.get_ylim()
    ordered = sorted(labels, key=lambda x: x[0])
    places = spread([(x[0] - low) / (high - low) for x in ordered], _LABEL_GAP)
    for place, (_, name, figure, paint) in zip(places, ordered, strict=True):
        if name:
            key: dict[str, Any] = {
                "color": _STAND_IN[paint],
                "linewidth": 3.0,
                "solid_capstyle": "butt",
                "clip_on": False,
            }
            axes.plot([1.03, 1.065], [place, place], transform=axes.transAxes, **key)
        text = f"{name} {figure}".strip()
        axes.text(1.085 if name else 1.03, place, text, transform=axes.transAxes, va="center", ha="left", fontsize=10)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Rising `places`, moved as little as needed to stand `gap` apart and, where they fit, within 0 to 1."""
    blocks: list[list[float]] = []  # wanted places less what stands below, pooled until they rise: [mean, number]
    for i, place in enumerate(places):
        blocks.append([place - i * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    pooled = [mean for mean, n in blocks for _ in range(int(n))]
    room = max(0.0, 1.0 - gap * (len(pooled) - 1))
    return [min(max(p, 0.0), room) + i * gap for i, p in enumerate(pooled)]


def _last(values: Sequence[float]) -> float:
    return next((v for v in reversed(values) if math.isfinite(v)), math.nan)


# ---- SVG


def _svg(figure: Figure, alt: str) -> str:
    """The drawing as an element of an HTML page, with its description for those who do not see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.S)  # would reach the whole page
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names of groups would stand twice in a page of many drawings
    text = re.sub(r"font-family: [^;\"]*; ", "", text)  # the page's own
    for name, color in _STAND_IN.items():
        text = text.replace(color, f"var(--{name})")
    view = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    return f'<svg class="chart" role="img" aria-label="{html.escape(alt)}" {view[0] if view else ""}>{body.strip()}'


def unique_ids(svg: str, prefix: str) -> str:
    """The drawing with ids that no other drawing of the page has, numbered in order of appearance."""
    for i, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg))):
        svg = svg.replace(f'id="{name}"', f'id="{prefix}-{i}"').replace(f'#{name}"', f'#{prefix}-{i}"')
        svg = svg.replace(f"url(#{name})", f"url(#{prefix}-{i})")
    return svg
