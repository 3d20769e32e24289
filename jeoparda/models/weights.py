"""Weights to begin from: published ones, or those of another run."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jeoparda import checkpoint
from jeoparda.errors import RecipeError
from jeoparda.models import ModelRecipe

State = dict[str, torch.Tensor]
_PUBLISHED_BANDS = 3


def load_weights(model: nn.Module, r: ModelRecipe, bands: tuple[str, ...], classes: tuple[str, ...]) -> str:
    """Give the model the parameters of the file r.weights, and say what was not taken as it is.

    bands, classes: of the model's images and logits, in order. A file of three bands is inflated to others
    (`inflated`). The last layer stays as it is where the file has other classes, or another number of them. RecipeError
    where the file is none, does not say its bands (r.weights_bands), has others or in another order, or where any other
    parameter is missing, left over or of another shape; CheckpointError where a checkpoint is damaged.
    """
    held = _read(r)
    state, own, theirs = _state(r, held), model.state_dict(), _bands(r, held)
    stem = next(iter(own))  # the layer that sees the bands comes first, the one that names the classes last
    last = next(reversed(own)).rpartition(".")[0]
    _check_stem(r, state, stem, theirs)
    said = []
    if theirs != bands:
        _check_inflates(r, theirs, bands)
        if stem in state:
            state[stem] = inflated(state[stem], theirs, bands)
            said.append(f"{stem} inflated from {', '.join(theirs)}")
    if f"{last}.bias" in state and (other := _other_classes(held, len(state[f"{last}.bias"]), classes)):
        state |= {name: own[name] for name in own if name.startswith(f"{last}.")}
        said.append(f"{last} fresh, as it has {other}")
    _check_fit(r, held, state, own)
    model.load_state_dict({name: state.get(name, own[name]) for name in own})
    return f"{r.weights}: " + ("; ".join(said) or "every parameter as it is there")


def _other_classes(held: dict[str, Any], count: int, classes: tuple[str, ...]) -> str:
    """What is different about the file's classes, "" where they are ours, or as many and not named."""
    named = held.get("about", {}).get("classes", list(classes) if count == len(classes) else [])
    if named == list(classes):
        return ""
    return (
        f"{count} classes there and {len(classes)} here" if count != len(classes) else f"other classes: {named[0]} ..."
    )


def inflated(filters: torch.Tensor, theirs: tuple[str, ...], bands: tuple[str, ...]) -> torch.Tensor:
    """(out, 3, row, col) filters of three bands for others: (out, band, row, col).

    A band of the same name keeps its filter, any other gets the mean of the three, and all are scaled by 3 / bands. So
    an image that is the same in all bands gives what it gave before, where all three are among the bands, or none.
    """
    mean = filters.mean(1)
    kept = [filters[:, theirs.index(band)] if band in theirs else mean for band in bands]
    return torch.stack(kept, 1) * (len(theirs) / len(bands))


def _read(r: ModelRecipe) -> dict[str, Any]:
    path = Path(str(r.weights))
    if path.with_name(f"{path.name}.sha256").exists():  # a checkpoint of ours
        return checkpoint.load(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as e:
        raise RecipeError(f"model.weights = {path}: cannot be read: {e.strerror or e}") from e
    except (RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as e:
        raise RecipeError(
            f"model.weights = {path}: cannot be read as a file of tensors by name; one with other objects is not "
            "opened, for it could run code: save model.state_dict() alone"
        ) from e
    if not isinstance(held, dict):
        raise RecipeError(f"model.weights = {path}: holds a {type(held).__name__}; expected parameters by name")
    return held


def _state(r: ModelRecipe, held: dict[str, Any]) -> State:
    """The parameters: those that evaluation would take, of a checkpoint."""
    for found in (held.get("average"), held.get("state_dict"), held.get("model"), held):
        if isinstance(found, dict) and found and all(isinstance(x, torch.Tensor) for x in found.values()):
            return dict(found)
    raise RecipeError(f"model.weights = {r.weights}: holds no parameters by name; expected a state dict")


def _bands(r: ModelRecipe, held: dict[str, Any]) -> tuple[str, ...]:
    """Of the file's first convolution. RecipeError where they are not known, or said in two ways."""
    known = tuple(band for g in held.get("about", {}).get("groups", ()) for band in g["bands"])
    if not known and not r.weights_bands:
        raise RecipeError(
            f"model.weights = {r.weights}: does not say which bands it is of; name them in its order by "
            "model.weights_bands, as [B04, B03, B02] for red, green and blue of Sentinel-2"
        )
    if known and r.weights_bands and known != r.weights_bands:
        raise RecipeError(
            f"model.weights_bands = {', '.join(r.weights_bands)}: {r.weights} is of {', '.join(known)}, as it says "
            "itself; leave weights_bands out"
        )
    return known or r.weights_bands


def _check_inflates(r: ModelRecipe, theirs: tuple[str, ...], bands: tuple[str, ...]) -> None:
    if r.name == "threebranch" or len(theirs) != _PUBLISHED_BANDS or len(bands) == _PUBLISHED_BANDS:
        raise RecipeError(
            f"model.weights = {r.weights}: is of the bands {', '.join(theirs)}, the run of {', '.join(bands)}; take "
            "the same in the same order (feed.bands), or weights of three bands for more or fewer (not for threebranch)"
        )


def _check_stem(r: ModelRecipe, state: State, stem: str, theirs: tuple[str, ...]) -> None:
    if r.name == "threebranch" or stem not in state:  # what is missing is named later
        return
    if state[stem].ndim != 4 or state[stem].shape[1] != len(theirs):
        raise RecipeError(
            f"model.weights = {r.weights}: its {stem} is {_shape(state[stem])}, which is not of the {len(theirs)} "
            f"bands {', '.join(theirs)}"
        )


def _check_fit(r: ModelRecipe, held: dict[str, Any], state: State, own: State) -> None:
    """RecipeError that names what does not fit. Old files lack BatchNorm's num_batches_tracked; it may be missing."""
    wrong = [f"{name} is missing" for name in own if name not in state and not name.endswith(".num_batches_tracked")]
    wrong += [f"{name} is not a parameter of it" for name in state if name not in own]
    wrong += [
        f"{name} is {_shape(state[name])}, not {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        of = held.get("about", {}).get("model", {})
        there = f"the file is of {of['name']} with width {of['width']}" if of else "is it of another network or width?"
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RecipeError(
            f"model.weights = {r.weights}: does not fit {r.name} with width {r.width}; {there}: "
            f"{'; '.join(wrong[:3])}{more}"
        )


def _shape(x: torch.Tensor) -> str:
    return " x ".join(map(str, x.shape)) or "a number"
