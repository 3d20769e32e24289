"""The synthetic archive that networks are trained on, as a store. Made once, and kept in benchmarks/work."""

import shutil
from pathlib import Path

from jeoparda.errors import StoreError
from jeoparda.journal import read
from jeoparda.stages import call
from jeoparda.store import StoreInfo

WORK = Path(__file__).with_name("work")
RECIPES = Path(__file__).with_name("recipes")
PATCHES = 10_000


def store(patches: int = PATCHES, prefix: str = "") -> Path:
    """A store of so many patches. prefix: of the names of its folders in benchmarks/work."""
    archive, folder = WORK / f"{prefix}archive", WORK / f"{prefix}store"
    if not whole(folder):
        call("synth", RECIPES / "synth.yaml", [f"out={archive}", f"patches={patches}"])
        call("ingest", RECIPES / "ingest.yaml", [f"archive={archive}", f"store={folder}"])
    return folder


def trained(recipe: Path, run: Path, *words: str) -> None:
    """Train a run of benchmarks/work: anew where it is finished, for what it holds is of other code; one that was
    interrupted goes on."""
    if (run / "journal.jsonl").exists() and any(e["event"] == "stop" for e in read(run / "journal.jsonl")):
        shutil.rmtree(run)
    call("train", recipe, [f"run={run}", *words])


def whole(folder: Path) -> bool:
    """Whether it is a store of this version. One of another is deleted; with an unfinished one ingest goes on."""
    try:
        StoreInfo.read(folder)
        return True
    except StoreError:
        if (folder / "store.json").exists():
            shutil.rmtree(folder)
        return False
