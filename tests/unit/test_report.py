"""The report and the journal it reads, on a synthetic run: 12 epochs, 43 classes, 12 samples, 2 maps."""

import base64
import html
import html.parser
import json
import math
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from jeoparda.errors import JeopardaError
from jeoparda.journal import Journal, JournalError, provenance, read
from jeoparda.nomenclature import CLC_BY_NAME, LEVEL_1, LEVEL_2, coarser, nomenclature
from jeoparda.report import ReportError, ReportRecipe, run

pytest.importorskip("matplotlib", reason="pip install 'jeoparda[report]'")
pytest.importorskip("jinja2", reason="pip install 'jeoparda[report]'")

CLASSES = nomenclature("bigearthnet-43")
BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
NASTY = '<script>alert("x")</script> & Söhne'


# ---- a synthetic run


def png(rgb: np.ndarray) -> bytes:
    """rgb: (row, col, 3) uint8 -> a PNG."""
    height, width, _ = rgb.shape
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def fields(rng: np.random.Generator, side: int, count: int) -> np.ndarray:
    """(side, side) int: `count` polygons, each pixel belonging to the nearest of as many points."""
    at = rng.uniform(0, side, (count, 2))
    grid = np.stack(np.meshgrid(range(side), range(side), indexing="ij"), -1)
    return np.argmin(((grid[:, :, None, :] - at) ** 2).sum(-1), -1)


def scene(rng: np.random.Generator, side: int, count: int) -> np.ndarray:
    """(side, side, 3) uint8: fields and woods in plausible true colours."""
    colors = np.array([[38, 62, 34], [92, 104, 58], [132, 118, 84], [70, 96, 44], [30, 44, 62], [150, 138, 112]])
    rgb = colors[rng.integers(0, len(colors), count)][fields(rng, side, count)].astype(float)
    return np.clip(rgb * rng.normal(1, 0.06, (side, side, 1)), 0, 255).astype(np.uint8)


def epoch(n: int, ranks: int, rng: np.random.Generator) -> dict:
    f1 = 0.88 - 0.55 * math.exp(-n / 3) + rng.normal(0, 0.006)
    rates = (7.2 + rng.normal(0, 0.08, ranks) - (1.5 if n == 1 else 0)).tolist()
    seconds = 8000 / sum(rates)
    parts = {"feed": 0.06, "compute": 0.79, "communication": 0.11, "checkpoint": 0.01}
    return {
        "epoch": n,
        "step": n * 125,
        "loss": 0.05 + 0.3 * math.exp(-n / 2.5),
        "lr": 1e-3 * 0.5 * (1 + math.cos(math.pi * n / 12)),
        "val": {
            "loss": 0.06 + 0.28 * math.exp(-n / 2.5) + 0.0005 * n,
            "micro_f1": f1,
            "macro_f1": f1 - 0.24,
            "micro_recall": f1 - 0.02,
            "macro_recall": f1 - 0.28,
            "map": f1 - 0.16,
        },
        "images_per_s": sum(rates),
        "images_per_s_per_rank": rates,
        "seconds": seconds,
        "val_seconds": seconds * 0.05,
        "wait_s": (seconds * rng.uniform(0.04, 0.08, ranks)).tolist(),
        "utilisation_per_rank": [0.97 if rank else 0.91 for rank in range(ranks)],
        "split_s": {k: v * seconds for k, v in parts.items()},
    }


def write_run(folder: Path, epochs: int = 12, ranks: int = 4) -> Path:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl")
    start = {
        "jeoparda": "0.1.0",
        "commit": "3f2a" * 10,
        "python": "3.11.7",
        "torch": "2.13.0",
        "horovod": "0.28.1",
        "host": "node017",
        "platform": "Linux-6.1.0-x86_64",
        "command": "jeoparda train forest.yaml batch=64",
        "ranks": ranks,
        "backend": "horovod",
        "feed": "dali",
        "device": "cpu",
        "store": "/scratch/project_42/bigearthnet.store",
        "store_digest": "9c41" * 16,
        "classes": list(CLASSES.classes),
        "bands": BANDS,
        "train_patches": 8000,
        "val_patches": 1000,
        "model": "resnet18",
        "parameters": 11_227_307,
        "recipe": {"store": "/scratch/project_42/bigearthnet.store", "epochs": 12, "batch": 64},
    }
    for n in range(1, epochs + 1):
        if n in (1, 8):
            journal.append("start" if n == 1 else "resume", **start)
        journal.append("epoch", **epoch(n, ranks, rng))
    (folder / "recipe.yaml").write_text("store: /scratch/project_42/bigearthnet.store\nepochs: 12\nbatch: 64\n")
    return folder


def class_figures(rng: np.random.Generator, patches: int = 1000) -> list[dict]:
    out = []
    level2, _, up = coarser(CLASSES.classes, "corine-2")
    for c, (name, color) in enumerate(zip(CLASSES.classes, CLASSES.colors, strict=True)):
        support = CLC_BY_NAME[name].patches * patches // 590_326
        skill = 0.45 + 0.12 * math.log10(support + 1) + rng.uniform(0, 0.12) if support > 1 else 0.0
        skill = min(skill, 0.96)
        tp, predicted = round(support * skill * 0.94), round(support * skill)
        cells = {"tp": tp, "fp": predicted - tp, "fn": support - tp, "tn": patches - support - predicted + tp}
        row = {"name": name, "color": list(color), "support": support, "predicted": predicted}
        row |= {"precision": skill, "recall": skill * 0.94, "f1": skill * 0.97, "ap": skill * 0.98}
        row |= cells | {"parent": level2[up[c].argmax()], "threshold": round(0.25 + 0.01 * c, 3)}
        out.append(row | ({"ap": float("nan")} if not support else {}))
    return out


def level_figures(to: str, finer: tuple[str, ...]) -> dict:
    """Sums that are plausible, no more: a coarser class is at least as frequent as its most frequent member."""
    names, colors, _ = coarser(finer, to)
    above, _, up = coarser(names, "corine-1") if to == "corine-2" else ((), (), np.zeros((len(names), 1)))
    rows = [
        {"name": n, "color": list(k), "parent": above[up[i].argmax()] if above else None, "support": 400 - i,
         "predicted": 280 - i, "tp": 250 - i, "fp": 30, "fn": 50, "tn": 670, "threshold": None,
         "precision": 0.89 - 0.01 * i, "recall": 0.83, "f1": 0.86 - 0.01 * i, "ap": 0.9}
        for i, (n, k) in enumerate(zip(names, colors, strict=True))
    ]  # fmt: skip
    return {"micro": {"f1": 0.9}, "macro": {"f1": 0.8}, "samples_average": {"f1": 0.9}, "map": 0.9, "classes": rows}


def samples(rng: np.random.Generator, count: int) -> list[dict]:
    out = []
    for i in range(count):
        truth = [str(n) for n in rng.choice(CLASSES.classes, rng.integers(1, 5), replace=False)]
        predicted = truth[: max(1, len(truth) - i % 3)] + [str(rng.choice(CLASSES.classes)) for _ in range(i % 2)]
        out.append(
            {
                "id": f"S2A_MSIL2A_20170613T101031_{i}_{i * 7 % 90}",
                "truth": truth,
                "predicted": sorted(set(predicted)),
                "scores": {n: float(rng.uniform(0.5 if n in predicted else 0.02, 1.0 if n in predicted else 0.5))
                           for n in {*truth, *predicted}},
                "png": base64.b64encode(png(scene(rng, 120, 9))).decode(),
            }
        )  # fmt: skip
    return out


def write_evaluation(folder: Path) -> dict:
    rng = np.random.default_rng(2)
    found = {
        "run": str(folder),
        "checkpoint": "best.pt",
        "store": "/scratch/project_42/bigearthnet.store",
        "split": "test",
        "patches": 1000,
        "threshold": 0.5,
        "micro": {"f1": 0.8712, "precision": 0.8801, "recall": 0.8625},
        "macro": {"f1": 0.6310, "precision": 0.6607, "recall": 0.6054},
        "samples_average": {"f1": 0.8123, "precision": 0.8311, "recall": 0.8002},
        "map": 0.7123,
        "task": "multi-label",
        "thresholds": "fixed",
        "left_out": 0,
        "classes": class_figures(rng),
        "levels": {"2": level_figures("corine-2", CLASSES.classes), "1": level_figures("corine-1", CLASSES.classes)},
        "samples": samples(rng, 12),
    }
    (folder / "evaluation.json").write_text(json.dumps(found))
    return found


def write_maps(folder: Path) -> Path:
    """Two scenes; the first L1C under an L2A model, the second without a class map picture."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    ledger = Journal(folder / "ledger.jsonl")
    chosen = [20, 21, 11, 16, 22, 1, 38]
    legend = [{"name": n, "color": list(c)} for n, c in zip(CLASSES.classes, CLASSES.colors, strict=True)]
    for name, level in (("brandenburg", "L1C"), ("T32UQD", "L2A")):
        (folder / f"{name}.png").write_bytes(png(scene(rng, 420, 60)))
        numbers = np.array(chosen)[fields(rng, 42, 14) % len(chosen)]
        colors = np.array(CLASSES.colors, np.uint8)
        if level == "L1C":
            (folder / f"{name}_classes.png").write_bytes(png(colors[numbers].repeat(10, 0).repeat(10, 1)))
        warning = "the scene is L1C (top of atmosphere), the model was trained on L2A: expect wrong classes"
        ledger.append(
            "map",
            scene=name,
            source=f"scenes/{name}.SAFE",
            level=level,
            classes_tif=f"{name}_classes.tif",
            probabilities_tif=f"{name}_probabilities.tif",
            quicklook_png=f"{name}.png",
            classmap_png=f"{name}_classes.png" if level == "L1C" else None,
            warnings=[warning] if level == "L1C" else [],
            pixels={CLASSES.classes[i]: int((numbers == i).sum()) for i in chosen},
            legend=legend,
        )
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> ReportRecipe:
    folder = write_run(tmp_path / "run")
    write_evaluation(folder)
    return ReportRecipe(run=folder, maps=[write_maps(tmp_path / "maps")])


def page_of(r: ReportRecipe) -> str:
    return Path(run(r)["path"]).read_text()


class Reader(html.parser.HTMLParser):
    """Tags with attributes, and the text outside of styles; checks that tags close in order."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


# ---- the page


def test_page_is_whole_and_asks_nothing_of_the_network(whole):
    result = run(whole)
    page = Path(result["path"]).read_text()
    assert result == {"path": whole.run / "report.html", "bytes": len(page.encode())}
    reader = Reader(page)
    assert reader.open == []
    assert not reader.all("link") and not reader.all("script") and not reader.all("iframe")
    assert all(a["src"].startswith("data:image/png;base64,") for a in reader.all("img"))
    links = [a["href"] for a in reader.all("a")] + [a["xlink:href"] for a in reader.all("use")]
    ids = [a["id"] for _, a in reader.tags if a.get("id")]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links} <= set(ids)
    assert all(f"#{name}" in page for name in re.findall(r"url\(#([^)]+)\)", page))
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_picture_is_described(whole):
    reader = Reader(page_of(whole))
    assert len(reader.all("img")) == 12 + 3
    assert all(len(a["alt"]) > 15 for a in reader.all("img"))
    charts = list(reader.all("svg"))
    assert len(charts) == 6 and all(a["role"] == "img" and len(a["aria-label"]) > 15 for a in charts)


def test_headline_comes_from_the_evaluation(whole):
    text = Reader(page_of(whole)).text
    for figure in ("0.871", "0.631", "0.712", "28.", "8\u202f000", "horovod", "resumed 1 time"):
        assert figure in text, figure


def test_utilisation_is_there_where_the_journal_has_it(whole, tmp_path):
    page = page_of(whole)
    assert "as MLPerf Storage defines it: <strong>96\u202f%" in page  # three ranks of 97 % and one of 91 %
    cells = re.findall(r'<td class="num">(\d+)\u202f%</td></tr>', page)
    assert cells[:4] == ["91", "97", "97", "97"]
    folder = write_run(tmp_path / "older", epochs=2)
    path = folder / "journal.jsonl"
    path.write_text(path.read_text().replace("utilisation_per_rank", "of_another_version"))
    assert "MLPerf" not in page_of(ReportRecipe(run=folder))


def test_without_evaluation_headline_is_the_last_epoch_and_the_command_is_given(tmp_path):
    folder = write_run(tmp_path / "run", epochs=5)
    text = Reader(page_of(ReportRecipe(run=folder))).text
    last = [e for e in read(folder / "journal.jsonl") if e["event"] == "epoch"][-1]
    assert f"{last['val']['micro_f1']:.3f}" in text and "validation, epoch 5" in text
    assert "Not evaluated yet" in text and f"jeoparda evaluate evaluate.yaml run={folder}" in text
    assert "No maps on this page" in text and "jeoparda predict" in text
    assert "7 epochs of the 12 in the recipe are to come" in text


def test_run_without_an_epoch_says_so(tmp_path):
    Journal(tmp_path / "run" / "journal.jsonl").append("start", model="resnet18")
    text = Reader(page_of(ReportRecipe(run=tmp_path / "run"))).text
    assert "No epoch is finished yet" in text


def test_classes_are_all_there_by_support(whole):
    page = page_of(whole)
    table = page[page.index('<table class="classes"') :].partition("</table>")[0]
    rows = re.findall(r'role="rowheader".*?<span>([^<]+)<', table, re.S)
    expected = sorted(class_figures(np.random.default_rng(2)), key=lambda c: (-c["support"], c["name"]))
    assert [re.sub("&amp;", "&", r) for r in rows] == [c["name"] for c in expected]
    assert "no patch" in page and ">rare<" in page  # nothing is hidden for being small


def body(page: str, start: str) -> list[list[str]]:
    """The cells of a table's body, tags left out. start: of the table's own tag, or of something before it."""
    table = page[page.index(start) :].partition("</table>")[0].partition("<tbody")[2]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", table, re.S)]
    return [[html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in rows]


def test_levels_stand_above_their_members(whole):
    """Every class once, beneath the class of the level above that CORINE puts it in."""
    page = page_of(whole)
    rows, depths = body(page, '<table class="classes levels"'), re.findall(r'class="depth(\d)', page)
    assert len(rows) == len(depths) == 5 + 15 + 43
    at, seen = ["", "", ""], set()
    for (name, support, precision, *_), depth in zip(rows, map(int, depths), strict=True):
        bare = re.sub("(no patch|rare)$", "", name)
        at[depth] = bare
        if depth == 2:
            code = CLC_BY_NAME[bare].code
            assert (at[0], at[1]) == (LEVEL_1[code // 100], LEVEL_2[code // 10])
            seen.add(bare)
        if depth == 0:
            assert (support, precision) == (
                str(400 - [*LEVEL_1.values()].index(bare)),
                f"{0.89 - 0.01 * [*LEVEL_1.values()].index(bare):.3f}",
            )
    assert seen == set(CLASSES.classes)


def test_counts_and_thresholds_of_each_class(tmp_path):
    folder = write_run(tmp_path / "run", epochs=2)
    found = write_evaluation(folder) | {"thresholds": "per-class", "left_out": 7}
    (folder / "evaluation.json").write_text(json.dumps(found))
    page = page_of(ReportRecipe(run=folder))
    rows = body(page, 'id="confusion"')
    ordered = sorted(found["classes"], key=lambda c: (-c["support"], c["name"]))
    assert rows == [
        [c["name"], *(f"{c[k]:,}".replace(",", "\u202f") for k in ("tp", "fn", "fp", "tn")), f"{c['threshold']:.3f}"]
        for c in ordered
    ]
    text = Reader(page).text
    assert "from its own threshold on, tuned on the validation split" in text and "thresholds of each class" in text
    assert "7 patches of the split with none of these classes left out" in text


def single(folder: Path, classes: int, seed: int = 4) -> dict:
    """An evaluation of chips with one class each."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, 600)
    said = np.where(rng.random(600) < 0.8, true, rng.integers(0, classes, 600))
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (true, said), 1)
    found = write_evaluation(folder) | {"task": "single-label", "confusion": confusion.tolist(), "levels": {}}
    rows = zip(found["classes"][:classes], confusion.sum(1), confusion.sum(0), confusion.diagonal(), strict=True)
    found["classes"] = [
        c | {"support": int(a), "predicted": int(b), "tp": int(tp), "fp": int(b - tp), "fn": int(a - tp),
             "tn": int(600 - a - b + tp), "parent": None, "threshold": None}
        for c, a, b, tp in rows
    ]  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(found))
    return found


@pytest.mark.parametrize("classes", [3, 43])
def test_single_label_confusion_is_a_table(tmp_path, classes):
    folder = write_run(tmp_path / "run", epochs=2)
    found = single(folder, classes)
    page = page_of(ReportRecipe(run=folder))
    rows = body(page, '<table class="fit matrix"')
    names = [c["name"] for c in found["classes"]]
    assert [r[0] for r in rows] == [f"{i}{n}" for i, n in enumerate(names, 1)]
    assert [[0 if v == "·" else int(v) for v in r[1:]] for r in rows] == found["confusion"]
    matrix = np.array(found["confusion"])
    np.fill_diagonal(matrix, 0)
    worst = sorted((-matrix[i, j], names[i], names[j]) for i, j in zip(*matrix.nonzero(), strict=True))[:5]
    text = Reader(page).text
    for n, true, said in worst:
        assert f"{true} taken for {said} ({-n})" in text
    assert "accuracy" in text and "By CORINE level" not in text and "threshold 0.5" not in text


def test_an_evaluation_of_an_older_version_is_shown_without_what_it_lacks(tmp_path):
    folder = write_run(tmp_path / "run", epochs=2)
    found = write_evaluation(folder)
    for key in ("samples_average", "levels", "task", "thresholds", "left_out"):
        del found[key]
    for c in found["classes"]:
        for key in ("tp", "fp", "fn", "tn", "threshold", "parent"):
            del c[key]
    (folder / "evaluation.json").write_text(json.dumps(found))
    reader = Reader(page_of(ReportRecipe(run=folder)))
    assert reader.open == [] and "0.871" in reader.text
    assert "By CORINE level" not in reader.text and "Confusion" not in reader.text and "samples" not in reader.text


def test_a_confusion_that_does_not_fit_its_classes_is_damage(tmp_path):
    folder = write_run(tmp_path / "run", epochs=1)
    found = single(folder, 3) | {"confusion": [[1, 2], [3, 4]]}
    (folder / "evaluation.json").write_text(json.dumps(found))
    with pytest.raises(ReportError, match=r"the confusion of 3 classes has rows of \[2, 2\]"):
        run(ReportRecipe(run=folder))


def test_truth_and_prediction_are_told_apart_in_words(whole):
    alts = [a["alt"] for a in Reader(page_of(whole)).all("img")]
    for s in json.loads((whole.run / "evaluation.json").read_text())["samples"]:
        alt = next(a for a in alts if s["id"] + " " in a)
        right, missed, false = re.search(r"Right: (.*)\. Missed: (.*)\. False: (.*)\.$", alt).groups()
        for names, expected in (
            (right, set(s["truth"]) & set(s["predicted"])),
            (missed, set(s["truth"]) - set(s["predicted"])),
            (false, set(s["predicted"]) - set(s["truth"])),
        ):
            assert sum(map(len, expected)) + 2 * max(0, len(expected) - 1) == len(names if expected else "")
            assert all(n in names for n in expected)


def test_maps_show_legend_and_warning(whole):
    page = page_of(whole)
    text = Reader(page).text
    assert text.count("expect wrong classes") == 2  # at the top, and at the map
    assert "brandenburg" in text and "Coniferous forest" in text
    assert "names no class map picture" in text
    assert 'class="pixels"' in page


def test_newest_line_of_a_scene_counts(whole):
    Journal(whole.maps[0] / "ledger.jsonl").append("map", scene="brandenburg", pixels={"Sea and ocean": 3}, warnings=[])
    text = Reader(page_of(whole)).text
    assert "expect wrong classes" not in text and text.count("brandenburg") < 6


def test_same_run_gives_same_bytes(whole, tmp_path):
    """Also in another process, where hashes and addresses differ."""
    first = Path(run(whole)["path"]).read_bytes()
    code = (
        "import sys; from pathlib import Path; from jeoparda.report import *; "
        "run(ReportRecipe(run=Path(sys.argv[1]), maps=[Path(sys.argv[2])], out=Path(sys.argv[3])))"
    )
    again = tmp_path / "again.html"
    subprocess.run([sys.executable, "-c", code, whole.run, whole.maps[0], again], check=True)
    assert again.read_bytes() == first


def test_text_is_escaped(tmp_path):
    folder = write_run(tmp_path / "run", epochs=2)
    found = write_evaluation(folder)
    found["classes"][0]["name"] = found["samples"][0]["id"] = found["split"] = NASTY
    found["classes"][1]["color"] = "red;background:url(//example.org)"
    (folder / "evaluation.json").write_text(json.dumps(found))
    (folder / "recipe.yaml").write_text(NASTY)
    page = page_of(ReportRecipe(run=folder, title=NASTY))
    assert "<script" not in page and "example.org" not in page and "&lt;script&gt;" in page
    assert NASTY in Reader(page).text


def test_damaged_evaluation_names_file_and_line(tmp_path):
    folder = write_run(tmp_path / "run", epochs=1)
    (folder / "evaluation.json").write_text('{\n"map": 0.5,\n oops')
    with pytest.raises(ReportError, match=r"evaluation\.json, line 3: damaged"):
        run(ReportRecipe(run=folder))
    (folder / "evaluation.json").write_text('{"map": 0.5}')
    with pytest.raises(ReportError, match=r"evaluation\.json: not what .*'classes'"):
        run(ReportRecipe(run=folder))


def test_what_is_no_run_or_map_folder_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"no journal\.jsonl"):
        run(ReportRecipe(run=tmp_path))
    folder = write_run(tmp_path / "run", epochs=1)
    with pytest.raises(ReportError, match=r"no ledger\.jsonl"):
        run(ReportRecipe(run=folder, maps=[tmp_path]))


@pytest.mark.parametrize("ranks", [1, 2, 64])
def test_any_number_of_ranks_and_epochs(tmp_path, ranks):
    folder = write_run(tmp_path / "run", epochs=1 if ranks == 1 else 90, ranks=ranks)
    reader = Reader(page_of(ReportRecipe(run=folder)))
    assert len(reader.all("svg")) == (5 if ranks == 1 else 6)
    assert f"Each of the {ranks} ranks" in reader.text or ranks == 1


def test_time_parts_add_up(whole):
    from jeoparda.report.gather import gather
    from jeoparda.report.page import parts, wall_s

    t = gather(whole.run, [], 0).training
    assert sum(p.seconds for p in parts(t)) == pytest.approx(wall_s(t))
    assert sum(p.share for p in parts(t)) == pytest.approx(1)
    assert t.resumed == [7]


def test_labels_are_spread():
    from jeoparda.report.figures import spread

    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    crowded = spread([0.0] * 20, 0.1)
    assert crowded[0] == 0 and np.diff(crowded) == pytest.approx(0.1)


# ---- the journal


def test_journal_reads_back_what_it_wrote(tmp_path):
    journal = Journal(tmp_path / "new" / "j.jsonl")
    journal.append("epoch", loss=math.nan, best=[math.inf, np.float32(0.5)], counts=np.arange(3), at=Path("x"), s="é")
    (entry,) = read(journal.path)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"event": "epoch", "loss": None, "best": [None, 0.5], "counts": [0, 1, 2], "at": "x", "s": "é"}


@pytest.mark.parametrize("damage", [b'{"event": "epo', b"", b"[1]", b'{"no": "event"}', b"\xff\xfe", b"\0\0\0"])
def test_damaged_line_is_an_error_with_file_and_line(tmp_path, damage):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"event": "start"}\n' + damage + b'\n{"event": "epoch"}\n')
    with pytest.raises(JournalError, match=r"j\.jsonl, line 2: damaged"):
        read(path)
    assert issubclass(JournalError, JeopardaError)


def test_last_line_cut_short_is_told_and_mended(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).append("start")
    with open(path, "ab") as f:
        f.write('{"event": "epoch", "host": "é'.encode()[:-1])
    first, cut = read(path)
    assert first["event"] == "start" and cut == {"event": "truncated", "line": 2, "bytes": 29}
    Journal(path).append("resume")
    assert [e["event"] for e in read(path)] == ["start", "truncated", "resume"]
    Journal(path).append("stop")
    assert [e["event"] for e in read(path)] == ["start", "truncated", "resume", "stop"]


def test_last_line_that_lacks_its_end_only_is_kept(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"event": "start"}')
    Journal(path).append("epoch")
    assert [e["event"] for e in read(path)] == ["start", "epoch"]


def test_truncated_journal_is_mentioned_on_the_page(tmp_path):
    folder = write_run(tmp_path / "run", epochs=3)
    with open(folder / "journal.jsonl", "a") as f:
        f.write('{"event": "epo')
    assert "Line 5 of journal.jsonl was cut short" in Reader(page_of(ReportRecipe(run=folder))).text


def test_provenance_tells_versions_and_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush-hush")
    monkeypatch.setattr(sys, "argv", ["/opt/bin/jeoparda", "train", "my recipe.yaml"])
    about = provenance()
    assert about["command"] == "jeoparda train 'my recipe.yaml'"
    assert {"jeoparda", "python", "numpy", "host"} <= set(about)
    assert "hush-hush" not in json.dumps(about)


if __name__ == "__main__":  # python tests/unit/test_report.py FOLDER: pages, to look at
    at = Path(sys.argv[1])
    write_run(at / "forest-r18")
    write_evaluation(at / "forest-r18")
    print(run(ReportRecipe(run=at / "forest-r18", maps=[write_maps(at / "maps")])))
    single(write_run(at / "chips"), 12)
    print(run(ReportRecipe(run=at / "chips")))
