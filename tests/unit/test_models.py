"""Networks and losses against published numbers and torch's own."""

import pytest
import torch
import torch.nn.functional as F

from jeoparda import losses
from jeoparda.config import check
from jeoparda.errors import RecipeError
from jeoparda.models import ModelRecipe, build

# parameters with 3 bands and 1000 classes: He et al. 2016, as torchvision counts them
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameters_are_as_many_as_published(name, count):
    model = build(ModelRecipe(name=name), 3, 1000)
    assert sum(p.numel() for p in model.parameters()) == count


def test_parameters_have_torchvision_s_names():
    names = set(build(ModelRecipe(name="resnet50", width=16), 12, 5).state_dict())
    some = {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "fc.bias"}
    assert some <= names and "layer1.1.downsample.0.weight" not in names and len(names) == 320


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_for_any_bands_and_sizes(name):
    model = build(ModelRecipe(name=name, width=16), 12, 19).eval()
    for size in (32, 120, 75):
        assert model(torch.zeros(2, 12, size, size)).shape == (2, 19)


def test_the_seed_decides_the_weights():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build(ModelRecipe(width=16), 12, 5).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_a_width_that_cannot_work_is_refused():
    with pytest.raises(RecipeError, match="width = 20: input should be a multiple of 16"):
        check(ModelRecipe, {"width": 20})


def test_multilabel_loss_is_torch_s_and_adds_up_over_ranks():
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(9, 4, generator=g, dtype=torch.float64)
    labels = (torch.rand(9, 4, generator=g) < 0.4).double()
    whole = losses.multilabel(logits, labels)
    assert whole.item() / 9 == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels).item(), rel=1e-12)
    parts = sum(losses.multilabel(a, b) for a, b in zip(logits.split([2, 0, 7]), labels.split([2, 0, 7]), strict=True))
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
