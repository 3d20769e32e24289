"""Weights to begin from: what is taken, what is refused, and what inflation keeps."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from jeoparda import checkpoint
from jeoparda.errors import CheckpointError, RecipeError
from jeoparda.models import ModelRecipe, build, weights
from jeoparda.models.weights import inflated
from jeoparda.store import Group, Layout

RGB = ("B04", "B03", "B02")
TWELVE = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")
SINGLE_STEM = ("resnet18", "resnet50", "shallow", "contextual", "unet")


def of(bands: tuple[str, ...], classes: int = 5, seed: int = 0, **recipe: object) -> nn.Module:
    torch.manual_seed(seed)
    layout = Layout((Group("10m", 10.0, 60, bands),))
    return build(ModelRecipe(**{"width": 16, **recipe}), layout, classes).eval()


def published(path: Path, **recipe: object) -> Path:
    """A bare state dict of three bands and seven classes, as torchvision's hub has them."""
    torch.save(of(RGB, 7, **recipe).state_dict(), path)
    return path


def recipe(weights: Path, bands: tuple[str, ...] = (), **more: object) -> ModelRecipe:
    return ModelRecipe(**{"width": 16, "weights": weights, "weights_bands": bands, **more})


def loaded(
    model: nn.Module, r: ModelRecipe, bands: tuple[str, ...], classes: tuple[str, ...] = ("a", "b", "c", "d", "e")
) -> str:
    return weights.load_weights(model, r, bands, classes)


def our_checkpoint(run: Path, model: nn.Module, bands: tuple[str, ...], **more: object) -> Path:
    about = {"groups": [{"bands": list(bands)}], "model": {"name": "resnet18", "width": 16}}
    path = checkpoint.path_of(run, 7)
    checkpoint.save(path, {"about": about, "model": model.state_dict(), **more})
    return path


def grey(bands: int) -> torch.Tensor:
    one = torch.randn(2, 1, 60, 60, generator=torch.Generator().manual_seed(3))
    return one.expand(-1, bands, -1, -1)


# ---- what is taken


@pytest.mark.parametrize("name", [*SINGLE_STEM, "threebranch"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_the_same_bands_and_classes_are_taken_as_they_are(tmp_path, name, key):
    there = of(RGB, name=name)
    torch.save({key: there.state_dict(), "epoch": 3} if key else there.state_dict(), tmp_path / "w.pth")
    model = of(RGB, seed=1, name=name)
    said = loaded(model, recipe(tmp_path / "w.pth", RGB, name=name), RGB)
    assert said == f"{tmp_path / 'w.pth'}: every parameter as it is there"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), there.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", [*SINGLE_STEM, "threebranch"])
def test_another_number_of_classes_leaves_the_last_layer_fresh_and_says_so(tmp_path, name):
    model, before = of(RGB, seed=1, name=name), of(RGB, seed=1, name=name).state_dict()
    path = published(tmp_path / "w.pth", name=name)
    last = "head" if name == "unet" else "fc"
    said = loaded(model, recipe(path, RGB, name=name), RGB)
    assert said == f"{path}: {last} fresh, as it has 7 classes there and 5 here"
    there = torch.load(path, weights_only=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith(f"{last}.") else there[key]), key


def test_old_files_may_lack_the_count_of_batches(tmp_path):
    state = of(RGB).state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    model = of(RGB, seed=1)
    loaded(model, recipe(tmp_path / "w.pth", RGB), RGB)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_checkpoint_names_its_own_bands_and_gives_its_average(tmp_path):
    newest, average = of(TWELVE, seed=1), of(TWELVE, seed=2)
    for path, there in (
        (our_checkpoint(tmp_path / "a", newest, TWELVE), newest),
        (our_checkpoint(tmp_path / "b", newest, TWELVE, average=None), newest),
        (our_checkpoint(tmp_path / "c", newest, TWELVE, average=average.state_dict()), average),
    ):
        model = of(TWELVE)
        loaded(model, recipe(path), TWELVE)
        assert torch.equal(model.state_dict()["conv1.weight"], there.state_dict()["conv1.weight"])


# ---- inflation


def test_inflation_is_what_it_says():
    filters = torch.randn(8, 3, 5, 5)
    found = inflated(filters, RGB, TWELVE)
    assert found.shape == (8, 12, 5, 5)
    for i, band in enumerate(TWELVE):
        expected = filters[:, RGB.index(band)] if band in RGB else filters.sum(1) / 3
        torch.testing.assert_close(found[:, i], expected / 4)


@pytest.mark.parametrize("name", SINGLE_STEM)
@pytest.mark.parametrize("bands", [TWELVE, ("B08",), ("B15", "B14", "B13", "B16")])
def test_a_grey_image_gives_what_it_gave(tmp_path, name, bands):
    """As all three bands, or none of them, are among the new ones."""
    there = of(RGB, name=name)
    torch.save(there.state_dict(), tmp_path / "w.pth")
    model = of(bands, seed=1, name=name)
    said = loaded(model, recipe(tmp_path / "w.pth", RGB, name=name), bands)
    assert said.endswith(" inflated from B04, B03, B02")
    with torch.no_grad():
        torch.testing.assert_close(model(grey(len(bands))), there(grey(3)), atol=1e-4, rtol=1e-4)


# ---- what is refused


def test_unknown_bands_are_refused(tmp_path):
    path = published(tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=rf"{re.escape(str(path))}: does not say which bands .* model.weights_bands"):
        loaded(of(RGB), recipe(path), RGB)


@pytest.mark.parametrize(
    ("theirs", "bands"),
    [
        (("B02", "B03", "B04"), RGB),  # another order
        (RGB, ("B08", "B04", "B03")),
        (TWELVE, RGB),
        (TWELVE, tuple(reversed(TWELVE))),
        (TWELVE, TWELVE[:-2]),
    ],
)
def test_other_bands_or_orders_are_refused_naming_both(tmp_path, theirs, bands):
    torch.save(of(theirs).state_dict(), tmp_path / "w.pth")
    said = f"is of the bands {', '.join(theirs)}, the run of {', '.join(bands)};"
    with pytest.raises(RecipeError, match=re.escape(said)):
        loaded(of(bands), recipe(tmp_path / "w.pth", theirs), bands)


def test_three_branches_are_not_inflated(tmp_path):
    path = published(tmp_path / "w.pth", name="threebranch")
    with pytest.raises(RecipeError, match="not for threebranch"):
        loaded(of(TWELVE, name="threebranch"), recipe(path, RGB, name="threebranch"), TWELVE)


def test_bands_that_the_file_cannot_have_are_refused(tmp_path):
    path = published(tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=r"conv1.weight is 16 x 3 x 7 x 7, which is not of the 2 bands B04, B03"):
        loaded(of(RGB), recipe(path, RGB[:2]), RGB)


def test_bands_said_in_two_ways_are_refused(tmp_path):
    path = our_checkpoint(tmp_path, of(TWELVE), TWELVE)
    loaded(of(TWELVE), recipe(path, TWELVE), TWELVE)
    with pytest.raises(RecipeError, match=r"weights_bands = B04, B03, B02: .* is of B02, B03, B04, .*leave"):
        loaded(of(TWELVE), recipe(path, RGB), TWELVE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("layer3.0.conv1.weight"), "layer3.0.conv1.weight is missing"),
        (lambda s: s.pop("conv1.weight"), "conv1.weight is missing"),
        (lambda s: s.pop("fc.bias"), "fc.bias is missing"),
        (lambda s: s.update(extra=torch.zeros(2)), "extra is not a parameter of it"),
        (lambda s: s.update({"bn1.bias": torch.zeros(9)}), "bn1.bias is 9, not 16"),
        (lambda s: s.update({"fc.weight": torch.zeros(5, 9)}), "fc.weight is 5 x 9, not 5 x 128"),
    ],
)
@pytest.mark.parametrize("bands", [RGB, TWELVE])
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, change, said, bands):
    state = of(RGB).state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    model, before = of(bands, seed=1), of(bands, seed=1).state_dict()
    with pytest.raises(RecipeError, match=re.escape(said)):
        loaded(model, recipe(tmp_path / "w.pth", RGB), bands)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            {"width": 32},
            "fit resnet18 with width 32; is it of another network or width?: conv1.weight is 16 x",
        ),
        ({"name": "resnet34"}, "fit resnet34 with width 16; is it of another network or width?: layer1.2"),
        (
            {"name": "unet"},
            "fit unet with width 16; is it of another network or width?: down.0.0.weight is miss",
        ),
    ],
)
def test_another_network_or_width_is_told(tmp_path, wanted, said):
    path = published(tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=re.escape(said)):
        loaded(of(RGB, **wanted), recipe(path, RGB, **wanted), RGB)


def test_a_checkpoint_tells_which_network_it_is_of(tmp_path):
    path = our_checkpoint(tmp_path, of(RGB), RGB)
    with pytest.raises(RecipeError, match=r"with width 32; the file is of resnet18 with width 16: conv1.weight is 16"):
        loaded(of(RGB, width=32), recipe(path, width=32), RGB)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 and nothing more", b"h\x01.", b"t."])
def test_files_that_are_no_weights_are_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"model.weights = {re.escape(str(path))}: cannot be read"):
        loaded(of(RGB), recipe(path, RGB), RGB)


def test_missing_files_and_other_contents_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.pth: cannot be read: No such file"):
        loaded(of(RGB), recipe(tmp_path / "none.pth", RGB), RGB)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(RecipeError, match="holds a list; expected parameters by name"):
        loaded(of(RGB), recipe(tmp_path / "list.pth", RGB), RGB)


@pytest.mark.parametrize(
    "held", [{"model": "resnet18", "state": {}}, {"state_dict": [1]}, {"conv1.weight": 3}, {}, {"model": {}}]
)
def test_a_dict_without_parameters_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(RecipeError, match="holds no parameters by name"):
        loaded(of(RGB), recipe(tmp_path / "w.pth", RGB), RGB)


def test_as_many_other_classes_leave_the_last_layer_fresh(tmp_path):
    about = {"groups": [{"bands": list(RGB)}], "model": {"name": "resnet18", "width": 16}}
    path = checkpoint.path_of(tmp_path, 1)
    checkpoint.save(path, {"about": about | {"classes": list("vwxyz")}, "model": of(RGB).state_dict()})
    model, before = of(RGB, seed=1), of(RGB, seed=1).state_dict()
    assert loaded(model, recipe(path), RGB) == f"{path}: fc fresh, as it has other classes: v ..."
    assert torch.equal(model.state_dict()["fc.weight"], before["fc.weight"])
    assert loaded(model, recipe(path), RGB, tuple("vwxyz")).endswith("every parameter as it is there")


def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path):
    path = our_checkpoint(tmp_path, of(RGB), RGB)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        loaded(of(RGB), recipe(path), RGB)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = our_checkpoint(tmp_path, of(RGB), RGB)
    path.with_name(path.name + ".sha256").write_text("0" * 64)
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        loaded(of(RGB), recipe(path), RGB)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)


def test_a_file_from_elsewhere_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Runs()}, tmp_path / "w.pth")
    with pytest.raises(RecipeError, match="cannot be read"):
        loaded(of(RGB), recipe(tmp_path / "w.pth", RGB), RGB)
    assert not Path("ran").exists()
