"""Recipes: YAML files checked against a dataclass, strictly, before any work begins.

A recipe type is a dataclass made with `@recipe`, beside the code that it steers. Every field is an `opt(...)`
with a default (or REQUIRED), a one-line meaning and, where it has one, a unit. `load` reads the file, lays
`key=value` words over it and checks the whole; `template` prints the commented recipe.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import ConfigDict
from pydantic_core import PydanticUndefined

from jeoparda.errors import RecipeError

R = TypeVar("R")
REQUIRED = PydanticUndefined

recipe = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))


def opt(default: Any, meaning: str, unit: str = "", **bounds: Any) -> Any:
    """A recipe field. `default` may be a recipe type (a nested section). `bounds`: pydantic's gt, ge, lt, le."""
    extra: Any = {"unit": unit}
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return pydantic.Field(default_factory=default, description=meaning, json_schema_extra=extra, **bounds)
    if isinstance(default, (dict, list)):
        return pydantic.Field(
            default_factory=lambda: type(default)(default), description=meaning, json_schema_extra=extra
        )
    return pydantic.Field(default, description=meaning, json_schema_extra=extra, **bounds)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as e:
        raise RecipeError(f"{where}: not valid YAML: {' '.join(str(e).split())}") from e


def load(kind: type[R], path: str | Path | None, words: tuple[str, ...] | list[str] = ()) -> R:
    """The recipe at `path` (None: defaults only) with `key=value` words laid over it, checked.

    Dots reach into sections: `model.name=resnet50`. Raises RecipeError naming the file, the key, the value
    and what would do.
    """
    where = "command line"
    data: Any = {}
    if path is not None:
        where = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as e:
            raise RecipeError(f"{where}: cannot read the recipe: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise RecipeError(f"{where}: cannot read the recipe: not UTF-8 text ({e.reason}, byte {e.start})") from e
        data = _parse(text, where) or {}
        if not isinstance(data, dict):
            raise RecipeError(f"{where}: a recipe is a mapping of keys to values, this is a {type(data).__name__}")
    for word in words:
        _lay(data, word)
    return check(kind, data, where)


def _lay(data: dict[str, Any], word: str) -> None:
    key, eq, text = word.partition("=")
    if not eq or not key:
        raise RecipeError(f"{word!r}: expected key=value, as in batch=64 or model.name=resnet50")
    *sections, last = key.split(".")
    for name in sections:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise RecipeError(f"{word!r}: {name!r} holds a value, not a section")
    data[last] = _parse(text, word)


def check(kind: type[R], data: dict[str, Any], where: str = "recipe") -> R:
    """`data` as a `kind`, or RecipeError with one line for each thing that is wrong."""
    try:
        # strict, but through JSON: lists may become tuples, strings become paths; "3" never becomes 3
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(data, default=str), strict=True)
    except pydantic.ValidationError as e:
        lines = [_explain(kind, err) for err in e.errors(include_url=False)]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from e


def _explain(kind: type, err: Any) -> str:
    loc = [str(p) for p in err["loc"]]
    key = ".".join(loc)
    if err["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = list(_section(kind, loc[:-1]))
        close = difflib.get_close_matches(loc[-1], names, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown key {key!r}; {hint}there are {', '.join(names)}"
    if err["type"] in ("missing", "missing_argument"):
        return f"key {key!r} is missing; it has no default ({_meaning(kind, loc)})"
    found = json.dumps(err["input"], default=str)
    reason = err["msg"].removeprefix("Value error, ")
    return f"{key or 'recipe'} = {found if len(found) < 200 else found[:200] + '…'}: {reason[:1].lower() + reason[1:]}"


def _section(kind: type, loc: list[str]) -> dict[str, Any]:
    for name in loc:
        field = getattr(kind, "__pydantic_fields__", {}).get(name)
        kind = field.annotation if field else kind
    return getattr(kind, "__pydantic_fields__", {})


def _meaning(kind: type, loc: list[str]) -> str:
    field = _section(kind, loc[:-1]).get(loc[-1])
    return (field.description or "") if field else ""


def as_dict(value: Any) -> dict[str, Any]:
    """A recipe as plain JSON types, every default resolved."""
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")


def dump(value: Any) -> str:
    """A recipe as YAML, every default resolved: what a run keeps."""
    return yaml.safe_dump(as_dict(value), sort_keys=False, allow_unicode=True)


def template(kind: type, given: dict[str, Any] | None = None, without: Collection[str] = ()) -> str:
    """The commented recipe of a stage: every key, its meaning, unit, choices and default. `given`: values of top-level
    keys to show instead of the default. `without`: top-level keys to leave out."""
    doc = " ".join((kind.__doc__ or "").split())
    return f"# {doc}\n" + "\n".join(_template_lines(kind, "", given or {}, without)) + "\n"


def _template_lines(kind: Any, indent: str, given: dict[str, Any], without: Collection[str]) -> list[str]:
    lines = []
    for name, field in kind.__pydantic_fields__.items():
        if name in without:
            continue
        note = field.description or ""
        unit = (field.json_schema_extra or {}).get("unit")
        if unit:
            note += f" [{unit}]"
        if choices := _choices(field.annotation):
            note += f" ({' | '.join(choices)})"
        if hasattr(field.annotation, "__pydantic_fields__"):
            lines += [f"{indent}{name}:  # {note}", *_template_lines(field.annotation, indent + "  ", {}, ())]
            continue
        if field.is_required() and name not in given:
            lines.append(f"{indent}{name}:  # {note}, required")
            continue
        default = given[name] if name in given else field.get_default(call_default_factory=True)
        value = json.dumps(default, default=str, ensure_ascii=False)
        lines.append(f"{indent}{name}: {value}  # {note}")
    return lines


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(a) for a in typing.get_args(annotation)]
    if isinstance(annotation, types.UnionType):
        return [c for a in typing.get_args(annotation) for c in _choices(a)]
    return []
