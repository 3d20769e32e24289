"""Networks and losses against published numbers, torch's own, and laws."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jeoparda import losses, meter
from jeoparda.config import check
from jeoparda.errors import RecipeError
from jeoparda.feed.upsample import Upsample
from jeoparda.models import ModelRecipe, build, check_side
from jeoparda.store import Group, Layout

# parameters with 3 bands and 1000 classes: He et al. 2016, as torchvision counts them
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
NAMES = ("resnet18", "resnet50", "shallow", "threebranch", "contextual", "unet")
SENTINEL = ((1, 4), (2, 6), (6, 2))  # (finest pixels in one, bands), as of its 10, 20 and 60 m


def layout(size_px: int, groups: tuple[tuple[int, int], ...] = SENTINEL) -> Layout:
    """groups: (step, bands) of each."""
    return Layout(
        tuple(
            Group(f"{step}0m", 10.0 * step, size_px // step, tuple(f"B{step}{i}" for i in range(bands)))
            for step, bands in groups
        )
    )


def of(name: str, bands: int = 3, classes: int = 5, size_px: int = 60, **more: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(ModelRecipe(name=name, **{"width": 16, **more}), layout(size_px, ((1, bands),)), classes)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameters_are_as_many_as_published(name, count):
    assert parameters(of(name, 3, 1000, width=64)) == count


def test_other_networks_have_the_parameters_of_their_papers():
    # U-Net with BatchNorm of three bands and one class: the count that its public implementations give
    assert parameters(of("unet", 3, 1, width=64)) == 31_037_633
    # by hand: weights of 5x5/32, 5x5/32, 3x3/64 without bias, two numbers a channel of their norms, 5 x 5 x 64 to 128
    # features, 43 classes
    branch = 25 * 12 * 32 + 25 * 32 * 32 + 9 * 32 * 64 + 2 * (32 + 32 + 64) + (5 * 5 * 64 + 1) * 128
    assert parameters(of("shallow", 12, 43, width=64)) == branch + 129 * 43
    # CerraNet's convolutions of 64, 64, 128, 128, 256
    convs = sum(9 * a * b + 2 * b for a, b in ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256)))
    assert parameters(of("contextual", 3, 4, width=64)) == convs + 257 * 256 + 257 * 4


def test_parameters_have_torchvision_s_names():
    names = set(of("resnet50", 12).state_dict())
    some = {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "fc.bias"}
    assert some <= names and "layer1.1.downsample.0.weight" not in names and len(names) == 320


@pytest.mark.parametrize("name", [*PUBLISHED, *NAMES[2:]])
def test_logits_for_any_bands_classes_and_sizes(name):
    for size, groups, classes in ((120, SENTINEL, 19), (48, ((1, 1),), 1), (75, ((1, 2), (3, 3)), 4)):
        model = build(ModelRecipe(name=name, width=16), layout(size, groups), classes).eval()
        assert model(torch.zeros(2, sum(b for _, b in groups), size, size)).shape == (2, classes)
        assert meter.flops(model, (sum(b for _, b in groups), size, size)) > 0  # without an image, on no device


@pytest.mark.parametrize(("name", "least"), [("shallow", 4), ("threebranch", 4), ("contextual", 32)])
def test_images_that_would_be_pooled_to_nothing_are_refused(name, least):
    assert of(name, size_px=least)(drawn(2, 3, least, least)).isfinite().all()
    with pytest.raises(RecipeError, match=rf"model.name = {name}: .*{least} px or more, these have {least - 1}"):
        of(name, size_px=least - 1)
    with pytest.raises(RuntimeError, match="too small"):  # what the refusal is for
        of(name, size_px=least)(drawn(2, 3, least - 1, least - 1))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "unet"])
def test_other_networks_take_any_size(name):
    for size in (1, 2, 5, 33):
        check_side(ModelRecipe(name=name), size)
        assert of(name, size_px=size)(drawn(2, 3, size, size)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_learn_eight_samples_by_heart(name):
    torch.manual_seed(0)
    model = build(ModelRecipe(name=name, width=16), layout(36), 3)
    images, labels = drawn(8, 12, 36, 36), (drawn(8, 3) > 0).float()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert torch.equal(model(images) > 0, labels > 0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    model = build(ModelRecipe(name=name, width=16), layout(60), 3)
    model(drawn(4, 12, 60, 60)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only_and_on_what_the_last_layer_sees(name):
    model = of(name, dropout=0.5)
    image = drawn(2, 3, 60, 60)
    last = list(model.modules())[-1]
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))
    zeros = [(x.flatten(2).abs().sum(-1) if x.ndim == 4 else x).eq(0).double().mean().item() for x in seen]
    assert min(zeros[:2]) > max(zeros[2:]) + 0.1  # ReLU leaves zeros as well


def test_the_seed_decides_the_weights():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build(ModelRecipe(width=16), layout(60), 5).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_a_width_that_cannot_work_is_refused():
    with pytest.raises(RecipeError, match="width = 20: input should be a multiple of 16"):
        check(ModelRecipe, {"width": 20})


# ---- three branches


def upsampled(size_px: int, groups: tuple[tuple[int, int], ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Native pixels of each group, and what a feed makes of them."""
    there = layout(size_px, groups)
    parts = [drawn(2, len(g.bands), g.size_px, g.size_px) for g in there.groups]
    return parts, Upsample(there.groups)(parts).clone()


@pytest.mark.parametrize("size", [12, 60, 120])
@pytest.mark.parametrize("groups", [SENTINEL, ((1, 1),), ((1, 2), (2, 1)), ((1, 1), (2, 1), (3, 2), (4, 1), (12, 1))])
def test_branches_see_native_pixels(size, groups):
    model = build(ModelRecipe(name="threebranch", width=16), layout(size, groups), 3)
    parts, image = upsampled(size, groups)
    for part, seen in zip(parts, model.parts(image), strict=True):
        torch.testing.assert_close(seen, part, atol=2e-6, rtol=0)


@pytest.mark.parametrize("side", [12, 36, 48])
def test_branches_see_native_pixels_of_crops(side):
    """A crop is cut before it is upsampled, so that it is like a smaller patch."""
    model = build(ModelRecipe(name="threebranch", width=16), layout(60), 3)
    parts, image = upsampled(side, SENTINEL)
    for part, seen in zip(parts, model.parts(image), strict=True):
        torch.testing.assert_close(seen, part, atol=2e-6, rtol=0)


@pytest.mark.parametrize("turn", list(itertools.product((False, True), repeat=3)))
def test_branches_see_native_pixels_after_flips_and_quarter_turns(turn):
    def turned(x: torch.Tensor) -> torch.Tensor:
        x = x.mT if turn[0] else x
        return x.flip([axis for axis, flip in zip((2, 3), turn[1:], strict=True) if flip])

    model = build(ModelRecipe(name="threebranch", width=16), layout(60), 3)
    parts, image = upsampled(60, SENTINEL)
    for part, seen in zip(parts, model.parts(turned(image)), strict=True):
        torch.testing.assert_close(seen, turned(part), atol=2e-6, rtol=0)


def test_a_branch_pools_less_the_coarser_its_pixels():
    model = build(ModelRecipe(name="threebranch", width=64), layout(120), 43).eval()
    sides: list[int] = []
    for branch in model.branches:
        branch.grid.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    model(torch.zeros(1, 12, 120, 120))
    assert sides == [30, 30, 23]  # the third's even kernels add a pixel each
    kernels = [[s[0].weight.shape[:1] + s[0].weight.shape[2:] for s in b.stages] for b in model.branches]
    assert kernels == [
        [(32, 5, 5), (32, 5, 5), (64, 3, 3)],
        [(32, 3, 3), (32, 3, 3), (64, 3, 3)],
        [(32, 2, 2), (32, 2, 2), (32, 2, 2)],
    ]


# ---- U-Net


@pytest.mark.parametrize("shape", [(1, 1), (17, 31), (32, 48), (75, 120)])
def test_unet_gives_logits_for_every_pixel_and_their_mean(shape):
    model = of("unet").eval()
    image = drawn(2, 3, *shape)
    pixels = model.pixels(image)
    assert pixels.shape == (2, 5, *shape)
    torch.testing.assert_close(model(image), pixels.flatten(2).mean(2))


def test_unet_looks_as_if_the_last_pixels_went_on():
    model = of("unet").eval()
    image = drawn(1, 3, 20, 29)
    whole = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), (0, 12), (0, 3)), mode="edge"))
    torch.testing.assert_close(model.pixels(image), model.pixels(whole)[..., :20, :29])


def test_unet_s_pixels_answer_to_what_is_there():
    """Moved by 16 px, which every level halves without a rest, the image gives the same map, but for the edges."""
    model = of("unet").eval().double()
    image = drawn(1, 3, 240, 240).double()
    moved = image.roll(16, 2)
    inside = slice(112, 128)  # as far from the edges as 5 levels see
    torch.testing.assert_close(
        model.pixels(moved)[..., 128:144, inside], model.pixels(image)[..., inside, inside], atol=1e-9, rtol=0
    )


# ---- losses


def test_multilabel_loss_is_torch_s_and_adds_up_over_ranks():
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(9, 4, generator=g, dtype=torch.float64)
    labels = (torch.rand(9, 4, generator=g) < 0.4).double()
    whole = losses.multilabel(logits, labels)
    assert whole.item() / 9 == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels).item(), rel=1e-12)
    parts = sum(losses.multilabel(a, b) for a, b in zip(logits.split([2, 0, 7]), labels.split([2, 0, 7]), strict=True))
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
