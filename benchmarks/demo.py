"""What the demo and the chain behind it can do: `python -m benchmarks.demo WHAT`, the answer as JSON on the last line.

Work goes to benchmarks/work, which may be deleted at any time; a measurement of learning that was interrupted goes
on where it stopped. Everything else on stdout is the stages' own talk.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import click
import numpy as np

from benchmarks import synthetic
from benchmarks.synthetic import RECIPES, WORK
from jeoparda.launch.local import launcher
from jeoparda.stages import call


@click.group()
def main() -> None:
    """Measure one thing."""


def _answer(value: float, **about: Any) -> None:
    print(json.dumps({"value": value, **about}), flush=True)


@main.command()
def minutes() -> None:
    """Minutes of `jeoparda demo` in a fresh folder."""
    folder = WORK / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jeoparda", "demo", str(folder)], check=True)
    _answer((time.perf_counter() - started) / 60)


def _learn(name: str, *words: str) -> dict[str, Any]:
    """Train on all cores as one rank and evaluate on held-back blocks."""
    store, run = synthetic.store(), WORK / name
    synthetic.trained(RECIPES / "learn.yaml", run, f"store={store}", *words)
    return call("evaluate", None, [f"store={store}", f"run={run}", "samples=0"])


@main.command()
def learns() -> None:
    """Micro F1 of ResNet-18 on held-back blocks of the synthetic archive."""
    figures = _learn("learns")
    _answer(figures["micro"]["f1"], macro_f1=figures["macro"]["f1"], map=figures["map"], patches=figures["patches"])


@main.command()
def shuffled() -> None:
    """The same with the training labels dealt out to other patches. Two epochs: more only learn them by heart."""
    figures = _learn("shuffled", "control=shuffled-labels", "epochs=2")
    _answer(figures["micro"]["f1"], macro_f1=figures["macro"]["f1"], map=figures["map"], patches=figures["patches"])


@main.command()
def bands_only() -> None:
    """Micro F1 of a logistic regression on each band's mean and standard deviation: how much is trivial."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from jeoparda.metrics import multilabel
    from jeoparda.store import Store

    store = Store(synthetic.store())

    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        numbers = store.split(split)
        bands = [[store.band(int(n), b).astype(np.float32) for b in store.info.bands] for n in numbers]
        return np.array([[f(b) for b in patch for f in (np.mean, np.std)] for patch in bands]), store.labels[numbers]

    x, y = features("train")
    there = y.sum(0) > 0  # a class that no training patch has cannot be fitted
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=1000)))
    model.fit(x, y[:, there])
    x, y = features("test")
    scores = np.zeros(y.shape, np.float32)
    scores[:, there] = model.predict_proba(x)
    _answer(multilabel(scores, y, 0.5).micro()["f1"])


@main.command()
def ranks() -> None:
    """Largest difference of any weight between 1 rank x batch 64 and 2 ranks x batch 32, after 12 steps in float64."""
    ways = launcher(2)
    if ways.reason:
        print(json.dumps({"cannot": ways.reason}))
        return
    import torch

    store = synthetic.store(400, "ranks-")
    weights = []
    for prefix, env, run in (((), {}, WORK / "ranks-1"), (ways.prefix, ways.env, WORK / "ranks-2")):
        shutil.rmtree(run, ignore_errors=True)
        words = [f"store={store}", f"run={run}", "precision=float64", "epochs=2", "batch=64", "optimizer.kind=sgd"]
        command = [*prefix, sys.executable, "-m", "jeoparda", "train", str(RECIPES / "learn.yaml"), *words]
        subprocess.run(command, check=True, env=os.environ | env)
        weights.append(torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"])
    one, two = weights
    _answer(max((one[k].double() - two[k].double()).abs().max().item() for k in one))


if __name__ == "__main__":
    main()
