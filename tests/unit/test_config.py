"""Recipes: strict, and told apart from what would do."""

from dataclasses import fields
from pathlib import Path
from typing import Literal

import pytest
import yaml

from jeoparda import config
from jeoparda.config import REQUIRED, as_dict, dump, load, opt, recipe, template
from jeoparda.errors import RecipeError
from jeoparda.stages import STAGES


@recipe
class Inner:
    """A section."""

    kind: Literal["round", "square"] = opt("round", "shape")
    size: int = opt(3, "how large", "px", ge=1, le=9)


@recipe
class Sample:
    """A recipe with one of everything."""

    out: Path = opt(REQUIRED, "where to")
    rate: float = opt(0.5, "how fast", gt=0)
    count: int = opt(4, "how many")
    quick: bool = opt(False, "in a hurry")
    text: str = opt("a: b # c", "words that YAML would misread")
    names: list[str] = opt(["x", "y"], "a list")
    inner: Inner = opt(Inner, "a section")
    limit: float | None = opt(None, "may be missing")


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *words: str) -> str:
    path = write(folder, text)
    with pytest.raises(RecipeError) as caught:
        load(Sample, path, words)
    assert str(path) in str(caught.value) or words
    return str(caught.value)


def test_defaults_and_file_and_words_are_laid_over_each_other(tmp_path):
    path = write(tmp_path, "out: here\nrate: 2\ninner: {size: 5}")
    r = load(Sample, path, ["count=7", "inner.kind=square", "limit=1.5"])
    assert r == Sample(out=Path("here"), rate=2.0, count=7, inner=Inner("square", 5), limit=1.5)


def test_a_word_wins_over_the_file_and_may_open_a_section(tmp_path):
    assert load(Sample, write(tmp_path, "out: a"), ["out=b", "inner.size=2"]).inner == Inner(size=2)
    assert load(Sample, None, ["out=b", "names=[p, q]"]).names == ["p", "q"]


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", ".001", "+1e-3"])
def test_numbers_as_people_write_them(tmp_path, text):
    assert load(Sample, write(tmp_path, f"out: a\nrate: {text}")).rate == 1e-3
    assert load(Sample, None, ["out=a", f"rate={text}"]).rate == 1e-3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("out: a\nrat: 1", ["unknown key 'rat'", "did you mean 'rate'?", "there are out, rate"]),
        ("out: a\ninner: {sze: 1}", ["unknown key 'inner.sze'", "did you mean 'size'?", "kind, size"]),
        ("out: a\nqqq: 1", ["unknown key 'qqq'; there are"]),
        ("rate: 1", ["key 'out' is missing", "where to"]),
        ("out: a\ncount: '3'", ['count = "3"', "integer"]),
        ("out: a\ncount: 3.5", ["count = 3.5", "integer"]),
        ("out: a\nquick: 1", ["quick = 1", "boolean"]),
        ("out: a\nrate: 0", ["rate = 0", "greater than 0"]),
        ("out: a\nrate: .nan", ["rate = NaN", "finite"]),
        ("out: a\ninner: {size: 10}", ["inner.size = 10", "less than or equal to 9"]),
        ("out: a\ninner: {kind: oval}", ['inner.kind = "oval"', "'round' or 'square'"]),
        ("out: a\ninner: 3", ["inner = 3"]),
        ("out: a\ncount: 1\ncount: 2", ["'count' stands twice"]),
        ("out: [a", ["not valid YAML"]),
        ("- out", ["a mapping of keys to values", "list"]),
        ("out: a\nrate: 0\ncount: x", ["rate = 0", 'count = "x"']),  # all that is wrong, at once
    ],
)
def test_what_cannot_work_is_refused_in_words(tmp_path, text, told):
    message = refusal(tmp_path, text)
    assert all(t in message for t in told), message


@pytest.mark.parametrize("word", ["count", "=3", "count.x=3"])
def test_words_that_are_none(tmp_path, word):
    assert repr(word) in refusal(tmp_path, "out: a\ncount: 1", word)


def test_an_empty_recipe_is_one_of_defaults(tmp_path):
    assert "key 'out' is missing" in refusal(tmp_path, "")
    assert load(Sample, write(tmp_path, ""), ["out=a"]) == Sample(out=Path("a"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match=r"absent.yaml: cannot read the recipe: No such file"):
        load(Sample, tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("out: Köln".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin.yaml"):
        load(Sample, tmp_path / "latin.yaml")


def test_a_recipe_cannot_be_changed_after_its_check():
    with pytest.raises(AttributeError):
        Sample(out=Path("a")).count = 5  # type: ignore[misc]


def test_dump_loads_back(tmp_path):
    r = Sample(out=Path("a"), rate=1e-7, text="ü: # x", names=["1", "no"], inner=Inner("square", 9))
    assert load(Sample, write(tmp_path, dump(r))) == r


def test_template_tells_every_key_and_loads_back(tmp_path):
    text = template(Sample)
    assert "out:  # where to, required" in text
    assert "size: 3  # how large [px]" in text
    assert "(round | square)" in text
    assert load(Sample, write(tmp_path, text), ["out=a"]) == Sample(out=Path("a"))


@pytest.mark.parametrize("stage", STAGES)
def test_the_template_of_each_stage_loads_back(tmp_path, stage):
    kind = STAGES[stage].recipe_type()
    text = template(kind)
    required = [n for n, f in kind.__pydantic_fields__.items() if f.is_required()]
    assert [f.name for f in fields(kind)] == list(yaml.safe_load(text))
    values = {"maps": "[m]", "scenes": "[s]"}
    words = [f"{n}={values.get(n, 'somewhere')}" for n in required]
    r = load(kind, write(tmp_path, text), words)
    assert r == config.check(kind, {w.partition("=")[0]: yaml.safe_load(w.partition("=")[2]) for w in words})
    assert as_dict(r).keys() == {f.name for f in fields(kind)}
    assert all(f.description for f in kind.__pydantic_fields__.values())
