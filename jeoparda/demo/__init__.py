"""The whole chain, small, on this machine: the commands that a user would type, one after the other.

Each step is a recipe written to FOLDER/recipes and the `jeoparda` command that takes it, so that any of them can be
run again by hand. A second demo in the same folder goes on where the first one stopped.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from jeoparda.errors import JeopardaError
from jeoparda.launch.local import Launcher, launcher

DATA = Path(__file__).parent / "data"
SCENE = DATA / "s2-l1c-brandenburg" / "IMG_DATA"


def recipes(folder: Path, patches: int, epochs: int) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """step -> (stage, what it shows, recipe), in order."""
    store, run = folder / "synthetic-store", folder / "run"
    return {
        "ingest-real": (
            "ingest",
            "30 real BigEarthNet patches become a store; one of them has a malformed label file",
            {"archive": DATA / "bigearthnet-v1", "store": folder / "real-store"},
        ),
        "synth": (
            "synth",
            f"a synthetic archive of {patches} patches in the same layout, enough to train on",
            {"out": folder / "synthetic-archive", "patches": patches},
        ),
        "ingest-synthetic": (
            "ingest",
            "the synthetic archive becomes a store, split by geographic blocks",
            {"archive": folder / "synthetic-archive", "store": store},
        ),
        "train": (
            "train",
            "a ResNet-18 for 12 bands and 43 classes",
            {"store": store, "run": run, "epochs": epochs, "batch": 32, "optimizer": {"lr": 0.0015}},
        ),
        "evaluate": ("evaluate", "figures per class on patches that were held back", {"run": run, "store": store}),
        "predict": (
            "predict",
            "a map of a real Sentinel-2 scene, by a network that knows synthetic patches only",
            {"run": run, "scenes": [SCENE], "out": folder / "maps"},
        ),
        "report": (
            "report",
            "all of it on one page",
            {"run": run, "maps": [folder / "maps"], "title": "jeoparda demo (trained on synthetic patches)"},
        ),
    }


def run(folder: Path, patches: int, epochs: int, ranks: int) -> None:
    """Run every step, print where everything is. JeopardaError names the step and command that failed."""
    started = time.perf_counter()
    ways = launcher(ranks)
    if ways.reason:
        print(f"demo: one rank instead of {ranks}: {ways.reason}", flush=True)
    one = Launcher(1, (), {})
    (folder / "recipes").mkdir(parents=True, exist_ok=True)
    steps = recipes(folder, patches, epochs)
    for number, (name, (stage, shows, recipe)) in enumerate(steps.items(), start=1):
        path = folder / "recipes" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe, default=str)), sort_keys=False))
        how = ways if stage in ("train", "evaluate") else one
        print(f"\n[{number}/{len(steps)}] {shows}", flush=True)
        _run(name, how, [stage, str(path)])
    _goodbye(folder, time.perf_counter() - started, ways)


def _spoken(how: Launcher) -> str:
    """How a user would begin a command: launcher and program, as they are found from here."""
    installed = Path(sys.executable).with_name("jeoparda")
    program = "jeoparda" if shutil.which("jeoparda") or not installed.exists() else os.path.relpath(installed)
    return shlex.join([*(f"{k}={v}" for k, v in how.env.items()), *how.prefix, program])


def _run(name: str, how: Launcher, words: list[str]) -> None:
    print(f"$ {_spoken(how)} {shlex.join(words)}", flush=True)
    program = [*how.prefix, sys.executable, "-m", "jeoparda", *words]
    if how.prefix and (
        found := shutil.which(how.prefix[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    ):
        program[0] = found  # horovodrun lies beside this Python, which need not be in PATH
    code = subprocess.run(program, env=os.environ | how.env, check=False).returncode
    if code:
        raise JeopardaError(
            f"demo: step {name} failed with exit code {code}; its messages are above. "
            "Run the demo again to go on from there"
        )


def _goodbye(folder: Path, seconds: float, ways: Launcher) -> None:
    report = (folder / "run" / "report.html").resolve()
    one, many = _spoken(Launcher(1, (), {})), _spoken(ways)
    print(
        f"""
Done in {seconds / 60:.1f} minutes. Where everything is:
  {report}   the report: open it in a browser
  {folder}/run/             recipe, journal.jsonl (a line an epoch), checkpoints, evaluation.json
  {folder}/maps/            the scene's classes and probabilities (GeoTIFF), ledger.jsonl
  {folder}/synthetic-store/ and {folder}/real-store/   stores
  {folder}/recipes/         the recipe of every step

What to try next:
  {one} store info {folder}/real-store        what a store holds, and why a patch was rejected
  {one} store verify {folder}/real-store      every byte against its checksum
  {one} recipe train                    every key of a training recipe
  {many} train {folder}/recipes/train.yaml run={folder}/run-2 model.name=resnet34
  {one} submit --dry-run train {folder}/recipes/train.yaml      the same as a Slurm job
  Your own archive: README, "The first own archive"
""",
        flush=True,
    )
