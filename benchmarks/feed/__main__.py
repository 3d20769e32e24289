"""What the feed costs: `python -m benchmarks.feed WHAT`, the answer as JSON on the last line.

Every figure is a ratio of rates from one run: the median over rounds in which each contender had its turn, in an order
that turns about. `rates` beside it has each contender's patches a second and processor time a patch, warm and cold.
"""

import json
import multiprocessing
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click

from benchmarks.feed import stores
from benchmarks.feed.loaders import AUGMENT, STILL, footprint
from benchmarks.feed.measure import ROOT, Turn, compare, disk, table
from benchmarks.feed.peers import PEERS, files_of
from benchmarks.turns import ratio

ROUNDS = 5
PATCHES = 8_192  # whole batches, and more than 1 GB
EPOCHS = 50

Command = tuple[str, ...]
asked = click.option("--set", "given", multiple=True, help="KEY=VALUE of the feed's recipe, as JSON; else its defaults")


@click.group()
def main() -> None:
    """Measure one thing."""


def benchmark(patches: int) -> Callable[[Callable[..., None]], click.Command]:
    """A command that is asked for nothing but a number of patches and the feed's recipe."""
    size = click.option("--patches", default=patches)
    return lambda measure: main.command()(size(asked(measure)))


def _answer(value: float, **about: Any) -> None:
    print(json.dumps({"value": value, **about}), flush=True)


def _feed(store: Path, given: tuple[str, ...], **options: Any) -> Command:
    return _ours("feed", store, **options | _parsed(given))


def _parsed(given: tuple[str, ...]) -> dict[str, Any]:
    return {key: json.loads(value) for key, _, value in (text.partition("=") for text in given)}


def _ours(who: str, store: Path, **options: Any) -> Command:
    return sys.executable, "-m", "benchmarks.feed.loaders", who, str(store), json.dumps(options)


def _against_the_loader(store: Path, feed: dict[str, Any], work: dict[str, Any], given: tuple[str, ...]) -> None:
    """The feed over a DataLoader that does the same work, warm and cold. The value is the warm ratio."""
    found: dict[str, dict[str, list[Turn]]] = {}
    for state in ("warm", "cold"):
        loader = _ours("loader", store, keep=state == "warm", **work)
        commands = {"feed": _feed(store, given, **feed), "loader": loader}
        found[state] = compare(commands, [store], state == "cold", ROUNDS, ("feed", "loader"))
    ratios = {state: ratio(turns, "feed", "loader") for state, turns in found.items()}
    about = {
        "ratios": ratios,
        "rates": {k: table(v) for k, v in found.items()},
        "batch": found["warm"]["feed"][0].batch,
    }
    _answer(ratios["warm"], **about, disk=disk(store))


@benchmark(PATCHES)
def raw(patches: int, given: tuple[str, ...]) -> None:
    """Native uint16 batches, what goes to a GPU: the feed over a DataLoader with two workers, both unnormalised."""
    _against_the_loader(stores.native(patches), {"kind": "raw"}, {"as": "raw"}, given)


@benchmark(PATCHES // 2)
def float32(patches: int, given: tuple[str, ...]) -> None:
    """Normalised float32 batches of 64 x 12 x 120 x 120 from bands of one size, unaugmented."""
    feed = {"kind": "dali", "augment": STILL}
    _against_the_loader(stores.flat(patches), feed, {"as": "image", "augment": STILL}, given)


@benchmark(PATCHES)
def augmented(patches: int, given: tuple[str, ...]) -> None:
    """Native bands upsampled, normalised and given every augmentation there is, by both."""
    feed = {"kind": "dali", "augment": AUGMENT}
    _against_the_loader(stores.native(patches), feed, {"as": "image", "augment": AUGMENT}, given)


@benchmark(PATCHES)
def floor(patches: int, given: tuple[str, ...]) -> None:
    """Raw batches over the copying of the same bytes from memory to memory by two threads, in the same order.

    Beside it, over bare system calls that read the same records from the page cache by two threads.
    """
    store = stores.native(patches)
    commands = {"feed": _feed(store, given, kind="raw")} | {who: _ours(who, store) for who in ("copies", "reads")}
    turns = compare(commands, [store], False, ROUNDS)
    ratios = {who: ratio(turns, "feed", who) for who in ("copies", "reads")}
    _answer(ratios["copies"], ratios=ratios, rates={"warm": table(turns)})


@benchmark(PATCHES)
def cold(patches: int, given: tuple[str, ...]) -> None:
    """Raw batches, no page of the store in the cache, over reading the same files from end to end.

    That is done with and without the page cache; the faster counts.
    """
    store = stores.native(patches)
    commands = {
        "feed": _feed(store, given, kind="raw"),
        "buffered": _ours("sequential", store, direct=False),
        "direct": _ours("sequential", store, direct=True),
    }
    turns = compare(commands, [store], True, ROUNDS)
    ratios = {name: ratio(turns, "feed", name) for name in ("buffered", "direct")}
    size = sum(p.stat().st_size for p in store.glob("shards/*"))
    gb_per_s = {k: v["patches_per_s"] * size / patches / 1e9 for k, v in table(turns).items()}
    about = {"ratios": ratios, "gb": size / 1e9, "gb_per_s": gb_per_s, "rates": {"cold": table(turns)}}
    _answer(min(ratios.values()), **about, disk=disk(store))


# ---- peers

HOW = (ROOT / "benchmarks" / "feed" / "peers.txt").read_text().splitlines()[1].lstrip("# ")


@main.command()
@click.option("--peers-python", envvar="PEERS_PYTHON", default="", help="interpreter of the peers' environment")
@click.option("--patches", default=PATCHES // 2)
@click.option("--image", is_flag=True, help="normalised float32 of bands of one size, instead of native uint16")
@asked
def peers(peers_python: str, patches: int, image: bool, given: tuple[str, ...]) -> None:
    """The feed over each peer that is installed; the value is the smallest of the warm ratios."""
    if not peers_python:
        print(json.dumps({"cannot": f"--peers-python is not given; in benchmarks/feed, {HOW}"}))
        return
    store = stores.flat(patches) if image else stores.native(patches)
    theirs = (peers_python, "-m", "benchmarks.feed.peers")
    there = json.loads(subprocess.run([*theirs, "installed"], cwd=ROOT, check=True, capture_output=True).stdout)
    present = [who for who in PEERS if not there[who].startswith("missing")]
    for who in present:
        subprocess.run([*theirs, who, store, json.dumps({"make": True})], cwd=ROOT, check=True, stdout=sys.stderr)
    kind = {"kind": "dali", "augment": STILL} if image else {"kind": "raw"}
    work = {"as": "image" if image else "raw"}
    found: dict[str, dict[str, list[Turn]]] = {}
    for state in ("warm", "cold"):
        told = json.dumps(work | {"keep": state == "warm"})
        commands: dict[str, Command] = {who: (*theirs, who, str(store), told) for who in present}
        commands["loader"] = _ours("loader", store, keep=state == "warm", **work)
        commands["feed"] = _feed(store, given, **kind)
        folders = [store, *(files_of(who, store) for who in present)]
        found[state] = compare(commands, folders, state == "cold", ROUNDS, list(commands))
    ratios = {state: {who: ratio(t, "feed", who) for who in t if who != "feed"} for state, t in found.items()}
    about = {"ratios": ratios, "rates": {k: table(v) for k, v in found.items()}, "versions": there}
    _answer(min(ratios["warm"][who] for who in present), **about, disk=disk(store))


# ---- a GPU


@main.command()
@click.option("--patches", default=PATCHES)
@click.option("--batch", default=256)
@click.option("--steps", default=100, help="of a turn")
@asked
def gpu(patches: int, batch: int, steps: int, given: tuple[str, ...]) -> None:
    """ResNet-50 in bfloat16, channels last, from the store over the same with a batch that lies on the device."""
    import torch

    if not torch.cuda.is_available():
        print(json.dumps({"cannot": "no GPU here"}))
        return
    from benchmarks.feed.gpu import train

    _answer(**train(stores.native(patches), _parsed(given), batch, steps, ROUNDS))


# ---- memory


@main.command()
def memory() -> None:
    """Resident memory, or open descriptors, of the last ten of 50 epochs over the ten from the fifth on, medians, as an
    epoch may end with a buffer more or less; the largest of both feeds."""
    store = stores.native(512)
    grown, about = [], {}
    for kind in ("plain", "dali"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            seen = pool.submit(footprint, store, {"kind": kind, "augment": AUGMENT}, EPOCHS).result()
        resident, descriptors = zip(*seen, strict=True)
        grown += [statistics.median(x[-10:]) / statistics.median(x[4:14]) for x in (resident, descriptors)]
        about[kind] = {"resident_mb": [round(b / 1e6) for b in resident], "descriptors": descriptors}
    _answer(max(grown), epochs=EPOCHS, **about)


if __name__ == "__main__":
    main()
