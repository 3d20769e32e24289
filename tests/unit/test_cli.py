"""The command line: exit codes, and messages instead of tracebacks."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from jeoparda import __version__
from jeoparda.cli import main
from jeoparda.stages import STAGES
from tests.conftest import JEOPARDA, environment

TRAIN = "{{store: {store}, run: {run}, model: {{width: 16}}, epochs: {epochs}, batch: 5, feed: {{kind: plain}}}}"


def write(folder: Path, **values) -> Path:
    path = folder / "t.yaml"
    path.write_text(TRAIN.format(**{"epochs": 1} | values))
    return path


def called(*words: object):
    return CliRunner().invoke(main, [str(w) for w in words])


def test_done_is_0():
    assert called("--version").output.strip().endswith(__version__)
    for stage in STAGES:
        assert called(stage, "--help").exit_code == 0
        assert stage in called("--help").output


@pytest.mark.parametrize(
    "words", [["nosuch"], ["train"], ["train", "--nosuch"], ["recipe", "nosuch"], ["store"], ["store", "nosuch"]]
)
def test_usage_is_2(words):
    done = called(*words)
    assert done.exit_code == 2 and "Usage" in done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "absent.yaml"], "absent.yaml: cannot read the recipe"),
        (["train", "{recipe}", "epoch=3"], "unknown key 'epoch'; did you mean 'epochs'?"),
        (["train", "{recipe}", "epochs=many"], 'epochs = "many"'),
        (["train", "{recipe}", "epochs"], "expected key=value"),
        (["train", "{recipe}"], "no store.json here"),
        (["train", "{recipe}", "comm=horovod", "store=3"], "store = 3"),
        (["store", "info", "{folder}"], "no store.json here"),
        (["store", "verify", "{folder}"], "no store.json here"),
    ],
)
def test_a_clear_error_is_1(tmp_path, words, told):
    recipe = write(tmp_path, store=tmp_path / "absent", run=tmp_path / "run")
    done = called(*[w.format(recipe=recipe, folder=tmp_path) for w in words])
    assert done.exit_code == 1, done.output
    assert done.output.startswith("jeoparda: ") and told in done.output
    assert isinstance(done.exception, SystemExit)  # a message, not a traceback


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("jeoparda.cli.template", None)
    assert isinstance(called("recipe", "train").exception, TypeError)


def test_in_a_process_of_its_own(cli, tmp_path):
    done = cli("train", write(tmp_path, store=tmp_path / "absent", run=tmp_path / "run"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("jeoparda: ") and "Traceback" not in done.stderr


def test_store_info_and_verify(tiny_store, tmp_path):
    told = called("store", "info", tiny_store).output
    assert "48 patches" in told and "7 shards" in told and "bigearthnet-43 (43 classes), 120 px" in told
    done = called("store", "verify", tiny_store)
    assert done.exit_code == 0 and "48 patches, every byte as written" in done.output
    copy = shutil.copytree(tiny_store, tmp_path / "store")
    shard = copy / "shards" / "00003.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    done = called("store", "verify", copy)
    assert (
        done.exit_code == 1
        and "00003.h5: differs from its checksum in store.json: patches 3 of it" in done.output
        and "every byte" not in done.output
    )


def test_stopped_on_purpose_is_75_and_it_goes_on(tiny_store, tmp_path):
    recipe = write(tmp_path, store=tiny_store, run=tmp_path / "run", epochs=60)

    def start() -> subprocess.Popen[str]:
        command = [*JEOPARDA, "train", str(recipe)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())

    process = start()
    until = time.monotonic() + 60
    while not list((tmp_path / "run").glob("checkpoints/0*.pt")):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    assert "stopped by SIGTERM in epoch" in told and "Traceback" not in told
    again = start()
    assert again.stdout is not None and "going on from epoch" in again.stdout.readline()
    again.kill()
    again.communicate()
