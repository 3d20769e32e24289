"""The stages: what the command line, a job and the demo all run. Their modules are imported when they are called."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jeoparda.config import load


@dataclass(frozen=True)
class Stage:
    """ranks: `one` process; `workers`, where rank 0 hands out the work; `comm`, where all step together. elastic: it
    goes on by itself from what it saved, also with fewer ranks."""

    module: str
    recipe: str
    ranks: Literal["one", "workers", "comm"]
    help: str
    elastic: bool = False

    def recipe_type(self) -> Any:
        return getattr(importlib.import_module(self.module), self.recipe)


STAGES: dict[str, Stage] = {
    "synth": Stage("jeoparda.synth", "SynthRecipe", "one", "Make a synthetic archive in a real layout."),
    "ingest": Stage("jeoparda.ingest", "IngestRecipe", "workers", "Make a store from an archive."),
    "train": Stage(
        "jeoparda.train", "TrainRecipe", "comm", "Train a network from a store, or go on training.", elastic=True
    ),
    "evaluate": Stage("jeoparda.evaluate", "EvaluateRecipe", "comm", "Figures per class of a run over a store."),
    "predict": Stage("jeoparda.predict", "PredictRecipe", "one", "Map scenes with a trained run."),
    "report": Stage("jeoparda.report", "ReportRecipe", "one", "One HTML page of a run and its maps."),
}


def progress(name: str, recipe_path: Path) -> str:
    """How far an elastic stage has come, in words that are the same as long as it has not saved anything more."""
    stage = STAGES[name]
    return importlib.import_module(stage.module).progress(load(stage.recipe_type(), recipe_path, ()))


def call(name: str, recipe_path: str | Path | None, words: tuple[str, ...] | list[str], elastic: bool = False) -> Any:
    """Run a stage in this process. Returns what the stage does. elastic: go on without ranks that are lost."""
    stage = STAGES[name]
    r = load(stage.recipe_type(), recipe_path, words)
    module = importlib.import_module(stage.module)
    if stage.ranks != "comm":
        return module.run(r)
    from jeoparda import comm as ranks_module

    exchange = getattr(r, "exchange", None) or ranks_module.ExchangeRecipe()
    if elastic:
        return ranks_module.elastic(lambda comm: module.run(r, comm), r.comm, exchange)
    comm = ranks_module.start(r.comm, exchange)
    try:
        result = module.run(r, comm)
    except BaseException:
        ranks_module.abandon(comm)
        raise
    comm.close()
    return result
