"""The marker `needs`: a skip says why and what would help, and can be turned into a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest

TEST = """
import pytest
from tests import conftest
conftest.NEEDS["moon"] = (lambda: "no rocket", "a bigger budget")

@pytest.mark.needs("moon")
def test_landing():
    assert False
"""


def outcome(folder: Path, **env: str) -> str:
    (folder / "test_moon.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "tests.conftest", "-p", "no:cacheprovider", str(folder)]
    environment = {k: v for k, v in os.environ.items() if k != "JEOPARDA_REQUIRE"} | {"PYTHONPATH": str(conftest.ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment | env).stdout


def test_what_is_missing_is_skipped_with_reason_and_remedy(tmp_path):
    told = outcome(tmp_path)
    assert "1 skipped" in told
    assert "needs moon: no rocket; to enable: a bigger budget" in told


@pytest.mark.parametrize("required", ["all", "slurm, moon"])
def test_what_is_required_fails(tmp_path, required):
    told = outcome(tmp_path, JEOPARDA_REQUIRE=required)
    assert "1 error" in told and "needs moon: no rocket" in told


def test_what_others_require_is_still_skipped(tmp_path):
    assert "1 skipped" in outcome(tmp_path, JEOPARDA_REQUIRE="slurm")


def test_probes_tell_missing_from_there():
    assert conftest._program("sh") == "" and conftest._module("numpy.linalg") == ""
    assert "no-such-program" in conftest._program("no-such-program")
    assert "no_such.module" in conftest._module("no_such.module")
