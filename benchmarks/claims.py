"""Measure what is claimed: `python -m benchmarks.claims [PREFIX] [--write]`.

Each row of claims.toml names a command whose last line on stdout is JSON: {"value": number, ...}, or
{"cannot": "reason"} where this machine cannot measure it. The verdict holds the value against the row's bar. Exit
code 1 when a claim falls short or its command fails. --write records value, date, machine and versions.
"""

import json
import operator
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import tomlkit

FILE = Path(__file__).with_name("claims.toml")
ROOT = FILE.parent.parent
_RELATIONS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Verdict:
    """`word`: holds, falls short, or cannot be measured here. `detail`: the value against the bar, or why not."""

    word: str
    detail: str
    value: float | None = None


def judge(bar: str, answer: dict[str, Any]) -> Verdict:
    """The verdict on a command's answer. `bar`: a relation and a number, ">= 0.85"."""
    if "cannot" in answer:
        return Verdict("cannot be measured here", str(answer["cannot"]))
    relation, limit = bar.split()
    value = float(answer["value"])
    word = "holds" if _RELATIONS[relation](value, float(limit)) else "falls short"
    return Verdict(word, f"{value:g}, claimed {bar}", value)


def measure(claim: dict[str, Any]) -> Verdict:
    """Run the claim's command here and judge its answer; a command that fails falls short."""
    words = shlex.split(claim["command"])
    program = [sys.executable if words[0] == "python" else words[0], *words[1:]]
    done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return Verdict("falls short", f"`{claim['command']}` failed with exit code {done.returncode}")
    return judge(claim["bar"], json.loads(lines[-1]))


def machine() -> str:
    """This machine in a line."""
    import torch

    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{len(os.sched_getaffinity(0))} cores, {found[1] if found else platform.machine()}, {gpu}"


def versions() -> str:
    from jeoparda.journal import provenance

    about = provenance()
    return ", ".join(f"{n} {about[n]}" for n in ("jeoparda", "python", "torch", "horovod") if n in about)


@click.command()
@click.argument("prefix", default="")
@click.option("--write", is_flag=True, help="record the values in claims.toml")
def main(prefix: str, write: bool) -> None:
    """Measure the claims whose name begins with PREFIX."""
    document = tomlkit.parse(FILE.read_text())
    chosen = [c for c in document["claim"] if c["name"].startswith(prefix)]  # type: ignore[union-attr]
    if not chosen:
        names = ", ".join(c["name"] for c in document["claim"])  # type: ignore[union-attr]
        raise click.UsageError(f"no claim begins with {prefix!r}; there are {names}")
    failed = False
    for claim in chosen:
        verdict = measure(claim)
        failed |= verdict.word == "falls short"
        click.echo(f"{claim['name']}: {verdict.word} ({verdict.detail}): {claim['claim']}")
        if write and verdict.value is not None:
            claim |= {
                "value": float(f"{verdict.value:.4g}"),
                "date": date.today(),
                "machine": machine(),
                "versions": versions(),
            }
            FILE.write_text(tomlkit.dumps(document))
    sys.exit(failed)


if __name__ == "__main__":
    main()
