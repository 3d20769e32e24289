"""What training reaches and costs: `python -m benchmarks.train WHAT`, the answer as JSON on the last line.

Figures of speed are ratios from one run: the median over rounds in which each side had its turn, in an order that turns
about.
"""

import itertools
import json
import os
from typing import Any

import click

ROUNDS = 7


@click.group()
def main() -> None:
    """Measure one thing."""


def _answer(value: float, **about: Any) -> None:
    print(json.dumps({"value": value, **about}), flush=True)


def _cannot(reason: str) -> None:
    print(json.dumps({"cannot": reason}), flush=True)


# ---- recipes


@main.command()
@click.argument("names", nargs=-1)
@click.option("--jobs", default=2, help="runs at a time, of one thread each")
def recipes(names: tuple[str, ...], jobs: int) -> None:
    """Train docs/recipes/train-*.yaml, all or those of these NAMES, on the synthetic archive. The value is by how much
    the worst run is above its recipe's bar."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    from benchmarks.train.recipes import measure, rows

    lines = measure(rows(names), jobs, click.echo)
    _answer(min(run["score"] - found["bar"] for found in lines for run in found["runs"]))


@main.command()
def table() -> None:
    """What `recipes` has measured, as docs/training.md has it."""
    from benchmarks.train.recipes import RESULTS
    from benchmarks.train.recipes import table as markdown

    if not RESULTS.exists():
        raise click.ClickException("nothing is measured yet: python -m benchmarks.train recipes")
    click.echo(markdown(json.loads(RESULTS.read_text())))


# ---- the loop and the ranks


@main.command()
@click.option("--steps", default=2, help="of a turn, which is an epoch")
@click.option("--batch", default=8)
@click.option("--width", default=64)
@click.option("--rounds", default=120)
def overhead(steps: int, batch: int, width: int, rounds: int) -> None:
    """The loop's time over that of a step written by hand, ResNet-18 and AdamW on one thread."""
    import torch

    from benchmarks.train.overhead import overhead

    torch.set_num_threads(1)
    _answer(**overhead(steps, batch, width, rounds))


def _keys(steps: int, batch: int, model: str, norm: str, ranks: int) -> dict[str, Any]:
    """Of a recipe that trains on as many images a rank, however many ranks there are."""
    from benchmarks.train.loop import store_of

    return {
        **store_of(steps, batch * ranks),
        "batch": batch * ranks,
        "model": {"name": model},
        "norm": norm,
        "feed": {"kind": "synthetic"},
    }


@main.command()
@click.option("--steps", default=2, help="of a turn")
@click.option("--batch", default=64, help="of a rank")
@click.option("--model", default="resnet50")
@click.option("--norm", default="synchronised", type=click.Choice(["synchronised", "local"]))
@click.option("--rounds", default=ROUNDS)
def scaling(steps: int, batch: int, model: str, norm: str, rounds: int) -> None:
    """Images a second of two ranks of one thread, each on a core of its own, over twice those of one.

    Beside it, over those of two that train side by side without any exchange: what cores and memory that are shared
    cost by themselves is in both of these.
    """
    from benchmarks.train.ranks import command, compare, table, together
    from benchmarks.turns import ratio
    from jeoparda.launch.local import launcher

    ways, cores = launcher(2), sorted(os.sched_getaffinity(0))
    if ways.reason or len(cores) < 2:
        return _cannot(ways.reason or "one core only")
    one, two = (_keys(steps, batch, model, norm, ranks) for ranks in (1, 2))
    sides = {
        "one": (command(cores[0], one),),
        "two": (together(cores[:2], two),),
        "pair": tuple(command(core, one) for core in cores[:2]),
    }
    turns = compare(sides, ways.env, rounds)
    efficiency = ratio(turns, "two", "one") / 2
    about = {"over_pair": ratio(turns, "two", "pair"), "pair": ratio(turns, "pair", "one") / 2}
    _answer(efficiency, **about, batch=batch, norm=norm, sides=table(turns))


@main.command()
@click.option("--steps", default=8, help="of a turn")
@click.option("--batch", default=8, help="of a rank")
@click.option("--model", default="resnet50")
@click.option("--norm", default="synchronised", type=click.Choice(["synchronised", "local"]))
@click.option("--rounds", default=ROUNDS)
def backends(steps: int, batch: int, model: str, norm: str, rounds: int) -> None:
    """The time of a step under Horovod over that under DDP, and the memory of a rank, two ranks of one thread."""
    from benchmarks.train.ranks import compare, table, together
    from benchmarks.turns import ratio
    from jeoparda.launch.local import launcher

    ways, cores = launcher(2), sorted(os.sched_getaffinity(0))
    if ways.reason or len(cores) < 2:
        return _cannot(ways.reason or "one core only")
    keys = _keys(steps, batch, model, norm, 2)
    sides = {comm: (together(cores[:2], keys | {"comm": comm}),) for comm in ("horovod", "torch")}
    turns = compare(sides, ways.env, rounds)
    _answer(ratio(turns, "torch", "horovod"), batch=batch, norm=norm, sides=table(turns))


# ---- a GPU


def _several(option: str, default: tuple[Any, ...], meaning: str) -> Any:
    return click.option(option, multiple=True, default=default, show_default=True, help=f"{meaning}; may be repeated")


@main.command()
@_several("--precision", ("float32", "tf32", "bfloat16", "float16"), "of the recipe")
@_several("--compile", ("none", "default", "reduce-overhead"), "torch.compile's mode")
@_several("--batch", (256, 512), "patches a step")
@click.option("--patches", default=8192, help="of the store, staged in memory")
@click.option("--steps", default=60, help="of a turn")
@click.option("--rounds", default=3)
def gpu(
    precision: tuple[str, ...], compile: tuple[str, ...], batch: tuple[int, ...], patches: int, steps: int, rounds: int
) -> None:
    """ResNet-50 on 12 bands of 120 px: images a second, end to end from a staged store. The value is the best; each
    setting's line is printed when it is measured."""
    import torch

    if not torch.cuda.is_available():
        return _cannot("no GPU here")
    from benchmarks.claims import machine, versions
    from benchmarks.feed import stores
    from benchmarks.train.gpu import measure
    from benchmarks.train.loop import VAL

    store, best = stores.native(patches + VAL, VAL), 0.0
    feed = {"stage": "shm", "augment": {"flips": True}}
    for of in itertools.product(precision, compile, batch):
        keys = dict(zip(("precision", "compile", "batch"), of, strict=True)) | {"model": {"name": "resnet50"}}
        found = measure(store, steps, rounds, feed=feed, **keys)
        print(json.dumps(found), flush=True)
        best = max(best, found["images_per_s"]["stored"])
        torch.compiler.reset()  # or settings that differ in their batch alone would count as one that changes
    _answer(best, machine=machine(), versions=versions())


if __name__ == "__main__":
    main()
