"""The command line: `jeoparda STAGE RECIPE.yaml [key=value ...]`.

Stages are imported when they are called, so that --help needs neither torch nor DALI.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from jeoparda import __version__
from jeoparda.config import load, template
from jeoparda.errors import JeopardaError, Stopped
from jeoparda.launch import command as launch_command
from jeoparda.signals import EXIT_RESUMABLE, ignore_late

# stage -> (module, recipe type, does it take ranks, what it does)
STAGES: dict[str, tuple[str, str, bool, str]] = {
    "synth": ("jeoparda.synth", "SynthRecipe", False, "Make a synthetic archive in the BigEarthNet layout."),
    "ingest": ("jeoparda.ingest", "IngestRecipe", False, "Make a store from an archive."),
    "train": ("jeoparda.train", "TrainRecipe", True, "Train a network from a store, or go on training."),
    "evaluate": ("jeoparda.evaluate", "EvaluateRecipe", True, "Figures per class of a run over a store."),
    "predict": ("jeoparda.predict", "PredictRecipe", False, "Map scenes with a trained run."),
    "report": ("jeoparda.report", "ReportRecipe", False, "One HTML page of a run and its maps."),
}


def call(stage: str, recipe_path: str | Path | None, words: tuple[str, ...] | list[str]) -> Any:
    """Run a stage in this process: what the command line, a job and the demo all do. Returns what the stage does."""
    module_name, kind, ranks, _ = STAGES[stage]
    module = importlib.import_module(module_name)
    r = load(getattr(module, kind), recipe_path, words)
    if not ranks:
        return module.run(r)
    from jeoparda import comm as ranks_module

    comm = ranks_module.start(r.comm)
    try:
        result = module.run(r, comm)
    except BaseException:
        ranks_module.abandon(comm)
        raise
    comm.close()
    return result


class _Group(click.Group):
    """Errors meant for the user become one message on stderr; anything else keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as e:
            click.echo(str(e), err=True)
            sys.exit(EXIT_RESUMABLE)
        except JeopardaError as e:
            click.echo(f"jeoparda: {e}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Deep learning on satellite archives: archive, store, training, maps.

    Every stage reads a recipe: `jeoparda recipe STAGE` prints one with all keys.
    """


def _stage(name: str, help_text: str) -> Callable[..., None]:
    @main.command(name, help=f"{help_text} `jeoparda recipe {name}` shows the keys.")
    @click.argument("recipe", type=click.Path(dir_okay=False))
    @click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
    def command(recipe: str, words: tuple[str, ...]) -> None:
        try:
            call(name, recipe, words)
        finally:
            ignore_late()

    return command


for _name, (*_, _help) in STAGES.items():
    _stage(_name, _help)


@main.command()
@click.argument("stage", type=click.Choice(list(STAGES)))
def recipe(stage: str) -> None:
    """Print a commented recipe with every key, default and unit."""
    module, kind, _, _ = STAGES[stage]
    click.echo(template(getattr(importlib.import_module(module), kind)), nl=False)


@main.group()
def store() -> None:
    """Look into a store."""


@store.command()
@click.argument("folder", type=click.Path())
def info(folder: str) -> None:
    """What a store holds."""
    from jeoparda.store import StoreInfo

    i = StoreInfo.read(Path(folder))
    splits = ", ".join(f"{k} {v}" for k, v in i.splits.items())
    click.echo(
        f"{folder}: {i.patches} patches ({splits}), {len(i.shards)} shards, {i.patches * i.record_bytes / 1e6:.0f} MB"
    )
    click.echo(f"sensor {i.sensor}, nomenclature {i.nomenclature} ({len(i.classes)} classes), {i.size_px} px")
    for g in i.groups:
        click.echo(f"  {g.name}: {' '.join(g.bands)} at {g.size_px} px")
    for name, reason in i.rejected:
        click.echo(f"rejected {name}: {reason}")


@store.command()
@click.argument("folder", type=click.Path())
def verify(folder: str) -> None:
    """Check every byte of a store against its checksums; exit 1 and name what is damaged."""
    from jeoparda.store import Store

    opened = Store(folder)
    faults = list(opened.verify())
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        sys.exit(1)
    click.echo(f"{folder}: {len(opened)} patches, every byte as written")


main.add_command(launch_command.make(STAGES, call), "submit")


@main.command()
@click.argument("folder", type=click.Path(), default="demo")
@click.option("--patches", default=1200, show_default=True, help="patches of the synthetic archive")
@click.option("--epochs", default=6, show_default=True, help="passes over them")
@click.option("--ranks", default=2, show_default=True, help="Horovod ranks to train with")
def demo(folder: str, patches: int, epochs: int, ranks: int) -> None:
    """The whole chain, small, on this machine."""
    from jeoparda.demo import run

    run(Path(folder), patches, epochs, ranks)
