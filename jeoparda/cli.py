"""The command line: `jeoparda STAGE RECIPE.yaml [key=value ...]`.

Stages are imported when they are called, so that --help needs neither torch nor DALI.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from jeoparda import __version__
from jeoparda.config import load, template
from jeoparda.errors import JeopardaError, Stopped
from jeoparda.launch.command import submit
from jeoparda.signals import EXIT_RESUMABLE, ignore_late
from jeoparda.stages import STAGES, call


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
    def command(recipe: str, words: tuple[str, ...], elastic: bool = False) -> None:
        try:
            call(name, recipe, words, elastic)
        finally:
            ignore_late()

    if STAGES[name].elastic:
        helps = "under `horovodrun --min-np`: go on with the nodes that are left when a rank is lost"
        command.params.append(click.Option(["--elastic"], is_flag=True, help=helps))
    return command


for _name, _about in STAGES.items():
    _stage(_name, _about.help)


@main.command()
@click.argument("stage", type=click.Choice(list(STAGES)))
@click.option("--source", default="bigearthnet-v1", help="of ingest: scenes, chips, ...")
def recipe(stage: str, source: str) -> None:
    """Print a commented recipe with every key, default and unit."""
    if stage != "ingest":
        click.echo(template(STAGES[stage].recipe_type()), nl=False)
        return
    from jeoparda.ingest.recipe import template_of

    click.echo(template_of(source), nl=False)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--epoch", type=click.IntRange(1), help="only this one; the first is 1")
@click.option("--store", "moved", type=click.Path(path_type=Path), help="where the run's store is now, if it moved")
def seen(run: Path, epoch: int | None, moved: Path | None) -> None:
    """Prove from a run's journals (feed.journal) that every epoch saw each patch exactly once, or as often as the
    recipe asks for; exit 1 if not."""
    from jeoparda.feed.seen import faults, prove, store_of, table

    its_store = store_of(run, moved)
    found = prove(run, its_store, epoch - 1 if epoch else None)
    click.echo(table(found))
    for fault in faults(found, its_store):
        click.echo(fault, err=True)
    if not all(e.exact for e in found):
        raise JeopardaError(f"{run}: not proven: {sum(not e.exact for e in found)} of {len(found)} epochs")
    patches = found[0].samples
    click.echo(
        f"{run}: {len(found)} epochs saw each of {patches} patches as often as asked for, in the order asked for"
    )


@main.group()
def store() -> None:
    """Look into a store, mend it, or make one in steps."""


_WORKERS = click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    help="local processes; 0: one a core. Under mpirun or srun: the ranks",
)


@store.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--samples", type=click.Path(path_type=Path), help="write a picture of sample patches to this PNG")
@click.option("--count", type=click.IntRange(1), default=16, show_default=True, help="patches in that picture")
def info(folder: Path, samples: Path | None, count: int) -> None:
    """What a store holds: bands, classes and images per split, rejects, and whether splits leak."""
    from jeoparda.report.store import describe_store, samples_png
    from jeoparda.store import Store

    opened = Store(folder)
    click.echo(describe_store(opened))
    if samples:
        samples_png(opened, samples, count)
        click.echo(f"{samples}: {min(count, len(opened))} patches")


@store.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_WORKERS
def verify(folder: Path, workers: int) -> None:
    """Check every byte of a store against its checksums; exit 1 and name what is damaged."""
    from jeoparda.ingest.upkeep import verify as look
    from jeoparda.store import StoreInfo

    faults = look(folder, workers)
    for fault in faults or ():
        click.echo(str(fault), err=True)
    if faults:
        raise JeopardaError(
            f"{folder}: {len(faults)} of its files are damaged; `jeoparda store repair {folder}` mends them"
        )
    if faults is not None:
        click.echo(f"{folder}: {StoreInfo.read(folder).patches} patches, every byte as written")


@store.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--archive", type=click.Path(path_type=Path), help="where the archive is now, if it moved")
@_WORKERS
def repair(folder: Path, archive: Path | None, workers: int) -> None:
    """Read damaged patches again from the archive."""
    from jeoparda.ingest.upkeep import repair as mend

    mend(folder, archive, workers)


@store.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_WORKERS
def stats(folder: Path, workers: int) -> None:
    """Per-band statistics of the training split, computed again from the pixels and held against store.json."""
    from jeoparda.ingest.upkeep import statistics

    if (answer := statistics(folder, workers)) is None:
        return
    found, same = answer
    width = max(4, *map(len, found))
    click.echo(f"{'band':{width}} {'pixels':>14} {'mean':>14} {'std':>14} {'min':>10} {'max':>10}")
    for band, s in found.items():
        click.echo(f"{band:{width}} {s.pixels:14} {s.mean:14.6g} {s.std:14.6g} {s.min:10g} {s.max:10g}")
    if not same:
        raise JeopardaError(f"{folder}/store.json says otherwise; `jeoparda store verify` and `repair` find out why")


def _part(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, int]:
    part, slash, parts = value.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{value!r}: expected i/n from 1/n to n/n, as in 3/16")
    return int(part), int(parts)


def _step(name: str, help_text: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A step of ingest as a command: RECIPE [KEY=VALUE]..."""

    def wrap(act: Callable[..., Any]) -> click.Command:
        recipe = click.argument("recipe", type=click.Path(dir_okay=False))
        words = click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
        return store.command(name, help=help_text)(recipe(words(act)))

    return wrap


def _ingest_recipe(recipe: str, words: tuple[str, ...]) -> Any:
    from jeoparda.ingest import IngestRecipe

    return load(IngestRecipe, recipe, words)


@_step("init", "First step of an ingest in parts: look at the archive and write the plan.")
def init(recipe: str, words: tuple[str, ...]) -> None:
    from jeoparda import ingest

    ingest.init(_ingest_recipe(recipe, words))


@_step("load", "Second step: make the shards of one part, as a task of a job array.")
@click.option("--part", required=True, callback=_part, metavar="i/n", help="which part, from 1/n to n/n")
def load_part(recipe: str, words: tuple[str, ...], part: tuple[int, int]) -> None:
    from jeoparda import ingest

    ingest.load(_ingest_recipe(recipe, words), *part)


@_step("finalise", "Last step: check that every shard is there, and write store.json.")
def finalise(recipe: str, words: tuple[str, ...]) -> None:
    from jeoparda import ingest

    ingest.finalise(_ingest_recipe(recipe, words))


main.add_command(submit)


@main.command()
@click.argument("folder", type=click.Path(), default="demo")
@click.option("--patches", default=1200, show_default=True, help="patches of the synthetic archive")
@click.option("--epochs", default=6, show_default=True, help="passes over them")
@click.option("--ranks", default=2, show_default=True, help="Horovod ranks to train with")
def demo(folder: str, patches: int, epochs: int, ranks: int) -> None:
    """The whole chain, small, on this machine."""
    from jeoparda.demo import run

    run(Path(folder), patches, epochs, ranks)
