"""Claims: the docs quote what was measured, and the verdicts can go either way."""

import re
import subprocess
import sys

import pytest
import tomlkit
from click.testing import CliRunner

from benchmarks import claims
from tests.conftest import ROOT

CLAIMS = {c["name"]: c for c in tomlkit.parse(claims.FILE.read_text()).unwrap()["claim"]}
PREFIXES = ("demo", "ingest", "feed", "train", "slurm", "segment", "predict", "series")
QUOTE = re.compile(r"([\d.]+(?:e-?\d+)?) <!-- ([a-z._]+) -->")


@pytest.mark.parametrize("name", CLAIMS)
def test_each_row_is_whole_and_holds(name):
    claim = CLAIMS[name]
    assert name.split(".")[0] in PREFIXES
    assert set(claim) >= {"claim", "command", "bar", "unit", "value", "date", "machine", "versions"}
    assert claims.judge(claim["bar"], {"value": claim["value"]}).word == "holds"


def test_the_docs_quote_the_rows():
    """A figure in the docs stands before its row's name, <!-- demo.minutes -->, with the digits it deserves."""
    found = [m for p in (ROOT / "README.md", *ROOT.glob("docs/*.md")) for m in QUOTE.findall(p.read_text())]
    assert {name for _, name in found} == set(CLAIMS)
    for text, name in found:
        value = CLAIMS[name]["value"]
        digits = len(text.partition("e")[0].partition(".")[2])
        assert float(text) == float(f"{value:.{digits}e}" if "e" in text else f"{value:.{digits}f}"), name


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ({"value": 0.9}, "holds"),
        ({"value": 0.85}, "holds"),
        ({"value": 0.84}, "falls short"),
        ({"value": float("nan")}, "falls short"),
        ({"cannot": "no GPU"}, "cannot be measured here"),
    ],
)
def test_verdicts(answer, word):
    assert claims.judge(">= 0.85", answer).word == word


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A claims.toml of three rows with commands that end at once."""
    path = tmp_path / "claims.toml"
    text = "# kept\n"
    for name, code in (
        ("a.good", 'print("talk"); print(chr(123) + chr(34) + "value" + chr(34) + ": 1}")'),
        ("a.bad", 'print(chr(123) + chr(34) + "value" + chr(34) + ": 0}")'),
        ("b.broken", "import sys; sys.exit(3)"),
    ):
        text += (
            f"[[claim]]\nname = '{name}'\nclaim = 'c'\ncommand = '''python -c '{code}' '''\nbar = '>= 0.5'\nunit = ''\n"
        )
    path.write_text(text)
    monkeypatch.setattr(claims, "FILE", path)
    return path


def test_a_claim_that_falls_short_or_breaks_ends_with_1(rows):
    good = CliRunner().invoke(claims.main, ["a.good", "--write"])
    assert good.exit_code == 0 and "a.good: holds (1, claimed >= 0.5)" in good.output
    written = tomlkit.parse(rows.read_text()).unwrap()["claim"][0]
    assert written["value"] == 1 and written["machine"] and "torch" in written["versions"]
    assert rows.read_text().startswith("# kept")
    bad = CliRunner().invoke(claims.main, ["a"])
    assert bad.exit_code == 1 and "a.bad: falls short" in bad.output
    broken = CliRunner().invoke(claims.main, ["b"])
    assert broken.exit_code == 1 and "failed with exit code 3" in broken.output


def test_an_unknown_prefix_names_the_claims():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.claims", "nope"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "demo.minutes" in done.stderr
