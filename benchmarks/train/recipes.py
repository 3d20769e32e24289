"""docs/recipes/train-*.yaml, trained on the synthetic archive to a stated score, each rank on one core."""

import json
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import tomlkit

from benchmarks import synthetic
from benchmarks.claims import machine, versions
from benchmarks.synthetic import RECIPES, WORK
from benchmarks.train import chips
from jeoparda.files import whole
from jeoparda.journal import read
from jeoparda.stages import call

DOCS = Path(__file__).parents[2] / "docs" / "recipes"
RESULTS = Path(__file__).parents[1] / "results" / "train.recipes.json"


@dataclass(frozen=True)
class Row:
    """Of train.toml, which says what each is."""

    name: str
    words: list[str]
    seeds: list[int]
    reached: str
    bar: float
    store: str = "patches"
    weights: tuple[str, ...] = ()


def rows(names: Iterable[str] = ()) -> list[Row]:
    """Of these names, all without any. KeyError for one that is not there."""
    found = {r["name"]: Row(**r) for r in tomlkit.parse((RECIPES / "train.toml").read_text()).unwrap()["recipe"]}
    return [found[name] for name in names] or list(found.values())


def measure(chosen: list[Row], jobs: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train, `jobs` runs at a time, and write each recipe's line to RESULTS once all its seeds are there. A run
    that was interrupted goes on where it stopped."""
    stores = {kind: chips.store() if kind == "chips" else synthetic.store() for kind in {r.store for r in chosen}}
    seeds: dict[str, dict[int, dict[str, Any]]] = {row.name: {} for row in chosen}
    lines = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = {pool.submit(train, row, seed, stores[row.store]): (row, seed) for row in chosen for seed in row.seeds}
        for run in as_completed(runs):
            row, seed = runs[run]
            seeds[row.name][seed] = run.result()
            if len(seeds[row.name]) == len(row.seeds):
                lines.append(line(row, [seeds[row.name][seed] for seed in row.seeds]))
                record(lines[-1])
                say(f"{row.name}: {scores(lines[-1])}, bar {row.bar}")
    return lines


def train(row: Row, seed: int, store: Path) -> dict[str, Any]:
    """One run, and its figures on the test split."""
    run = WORK / "train" / f"{row.name}-{seed}"
    words = [f"store={store}", f"seed={seed}", *row.words]
    if row.weights:
        words.append(f"model.weights={_weights(row, seed, store)}")
    synthetic.trained(DOCS / f"train-{row.name}.yaml", run, *words)
    fixed, own = (
        call("evaluate", None, [f"store={store}", f"run={run}", "samples=0", f"thresholds={kind}"])
        for kind in ("fixed", "run")
    )
    return {"seed": seed} | _effort(run) | _figures(own) | {"macro_f1_fixed_threshold": fixed["macro"]["f1"]}


def _weights(row: Row, seed: int, store: Path) -> Path:
    """A file with nothing but parameters, by torchvision's names, of a network that saw three bands."""
    import torch

    run = WORK / "train" / f"{row.name}-{seed}-weights"
    synthetic.trained(DOCS / "train-resnet18-rgb.yaml", run, f"store={store}", f"seed={seed}", *row.weights)
    held = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    torch.save(held["model"], run / "published.pth")
    return run / "published.pth"


def _effort(run: Path) -> dict[str, Any]:
    """What was trained, and what that took, of the run's journal."""
    entries = read(run / "journal.jsonl")
    start, epochs = entries[0], [e for e in entries if e["event"] == "epoch"]
    cut = any(e["event"] == "resume" and e["step"] for e in entries)  # then an epoch's line tells of its rest alone
    return {
        "model": start["recipe"]["model"],
        "parameters": start["parameters"],
        "gflops_per_image": start["flops_per_image"] / 1e9,
        "epochs": len(epochs),
        "images": start["drawn_patches"] * len(epochs),
        "minutes": None if cut else sum(e["seconds"] + e["val_seconds"] for e in epochs) / 60,
    }


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "score": found["micro"]["f1"],  # of one class a patch this is the accuracy
        "task": found["task"],
        "macro_f1": found["macro"]["f1"],
        "samples_f1": found["samples_average"]["f1"],
        "map": found["map"],
        "thresholds": found["thresholds"],
        "patches": found["patches"],
    }


# ---- results


def line(row: Row, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A recipe's object in RESULTS."""
    about = {"machine": machine(), "versions": versions(), "date": str(date.today())}
    return {"name": row.name, "words": row.words, "reached": row.reached, "bar": row.bar, "runs": runs} | about


def record(new: dict[str, Any]) -> None:
    """Put it in the place of what RESULTS has of this recipe, in train.toml's order."""
    known = {r["name"]: r for r in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    known[new["name"]] = new
    with whole(RESULTS) as draft:
        draft.write_text(json.dumps([known[r.name] for r in rows() if r.name in known], indent=1) + "\n")


def scores(found: dict[str, Any]) -> str:
    """The runs' scores in words."""
    runs = found["runs"]
    what = "accuracy" if runs[0]["task"] == "single-label" else "micro F1"
    said = f"{what} {_each(runs, 'score')}; macro F1 {_each(runs, 'macro_f1')}"
    if runs[0]["thresholds"] == "per-class":
        said += f", with one threshold for all {_each(runs, 'macro_f1_fixed_threshold')}"
    return f"{said}; mAP {_each(runs, 'map')}"


def _each(runs: list[dict[str, Any]], figure: str) -> str:
    return ", ".join(f"{r[figure]:.3f}" for r in runs)


HEAD = (
    "| recipe | network | parameters | GFLOPs a training image | the seed, on BigEarthNet "
    "| ours, on the synthetic archive | bar | minutes |",
    "|---|---|---|---|---|---|---|---|",
)


def table(found: list[dict[str, Any]]) -> str:
    """RESULTS as markdown."""
    return "\n".join((*HEAD, *map(_row, found)))


def _row(found: dict[str, Any]) -> str:
    first = found["runs"][0]
    cells = (
        f"train-{found['name']}",
        f"{first['model']['name']}, width {first['model']['width']}",
        f"{first['parameters'] / 1e6:.2f} M",
        f"{first['gflops_per_image']:.2f}",
        found["reached"] or "–",
        scores(found),
        f"{found['bar']:g}",
        ", ".join("–" if r["minutes"] is None else f"{r['minutes']:.1f}" for r in found["runs"]),
    )
    return f"| {' | '.join(cells)} |"
