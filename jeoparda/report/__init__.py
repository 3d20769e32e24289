"""Reports: one self-contained HTML page of a run. The only home of matplotlib and jinja2 (extra `report`)."""

from pathlib import Path
from typing import Any

from jeoparda.config import REQUIRED, opt, recipe
from jeoparda.errors import JeopardaError
from jeoparda.files import whole
from jeoparda.report.gather import ReportError, gather

__all__ = ["ReportError", "ReportRecipe", "run"]


@recipe
class ReportRecipe:
    """jeoparda report: curves, figures per class, sample patches and maps of a run on one HTML page."""

    run: Path = opt(REQUIRED, "run folder made by `jeoparda train`")
    out: Path | None = opt(None, "page written; null: report.html in the run folder")
    maps: list[Path] = opt([], "map folders made by `jeoparda predict`")
    title: str = opt("", "heading of the page; empty: the run folder's name")
    samples: int = opt(12, "sample patches shown at most", "patches", ge=0)


def run(r: ReportRecipe) -> dict[str, Any]:
    """Write the page and return its {"path", "bytes"}. The same run gives the same bytes.

    What is not there yet is said on the page. Raises ReportError or JournalError where something is there but
    damaged, and JeopardaError without the extra `report`.
    """
    content = gather(r.run, r.maps, r.samples)
    try:
        from jeoparda.report.page import render  # here, so that recipes and --help do without matplotlib
    except ModuleNotFoundError as e:
        raise JeopardaError(f"report: {e.name} is not installed; pip install 'jeoparda[report]'") from e
    page = render(content, r.title or content.training.name).encode()
    path = r.out or r.run / "report.html"
    _write(path, page)
    print(f"{path}: {len(page) / 1e6:.1f} MB, opens in any browser")
    return {"path": path, "bytes": len(page)}


def _write(path: Path, content: bytes) -> None:
    """`content` under its name only when it is whole."""
    try:
        with whole(path) as draft:
            draft.write_bytes(content)
    except OSError as e:
        raise ReportError(f"{path}: cannot write the page: {e.strerror}; give another `out`") from e
