"""Gradient checkpointing: the same training with fewer tensors kept."""

import pytest
import torch
from torch import nn

from jeoparda.comm import synchronise_norm
from jeoparda.models import ModelRecipe, build
from jeoparda.models.layers import run
from jeoparda.store import Group, Layout

LAYOUT = Layout((Group("10m", 10.0, 36, ("B02", "B03")), Group("20m", 20.0, 18, ("B05",))))
NAMES = ("resnet18", "resnet50", "shallow", "threebranch", "contextual", "unet")


def of(name: str, recompute: bool) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelRecipe(name=name, width=16, dropout=0.3, recompute=recompute), LAYOUT, 4).double()


def batches(count: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return list(torch.randn(count, 4, 3, 36, 36, generator=g, dtype=torch.float64))


def trained(name: str, recompute: bool) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """The state after some steps of SGD, and the gradients of the last."""
    model = of(name, recompute)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for image in batches(3):
        optimizer.zero_grad()
        model(image).square().mean().backward()
        optimizer.step()
    return model.state_dict(), [p.grad for p in model.parameters()]


def kept_bytes(model: nn.Module, image: torch.Tensor) -> int:
    """Of different memories that the backward pass would read, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(image)
    return sum(s.nbytes() for at, s in kept.items() if at not in own)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_weights_and_statistics_are_the_same(name):
    (plain, gradients), (state, again) = trained(name, False), trained(name, True)
    assert list(plain) == list(state)
    for key, value in plain.items():  # running statistics and their counts among them
        assert torch.equal(state[key], value), key
    assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))
    moved = {int(v) for key, v in state.items() if key.endswith("num_batches_tracked")}
    assert moved == {3}


class Twin:
    """Two ranks with the same batch."""

    size = 2

    def sum(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return 2 * x


def test_synchronised_statistics_move_once_as_well():
    found = []
    for recompute in (False, True):
        model = synchronise_norm(of("unet", recompute), Twin())
        assert any(type(m) is not nn.BatchNorm2d for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        model(batches(1)[0]).square().mean().backward()
        found.append([*model.buffers(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.6), ("resnet50", 0.4), ("contextual", 0.5), ("unet", 0.5)])
def test_less_is_kept_for_the_backward_pass(name, share):
    image = batches(1)[0]
    plain, less = (kept_bytes(of(name, recompute), image) for recompute in (False, True))
    assert less < share * plain


def test_random_numbers_are_drawn_again_as_they_were():
    block = nn.Sequential(nn.Linear(50, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double()
    x = torch.ones(2, 50, dtype=torch.float64, requires_grad=True)
    found = []
    for recompute in (False, True):
        torch.manual_seed(3)
        y = run(block, x, recompute=recompute)
        after = torch.rand(1)
        found.append((y, *torch.autograd.grad(y.sum(), [x, *block.parameters()]), after, torch.rand(1)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_statistics_are_whole_after_an_error_in_the_second_pass():
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls = nn.BatchNorm2d(3), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            x = self.norm(x).exp()
            if self.calls == 2:
                raise MemoryError("as a device would")
            return x.exp()

    block = Breaks()
    held = dict(block.named_buffers())
    y = run(block, torch.ones(2, 3, 4, 4), recompute=True)
    with pytest.raises(MemoryError):
        y.sum().backward()
    assert all(dict(block.named_buffers())[name] is buffer for name, buffer in held.items())
    assert held["norm.num_batches_tracked"] == 1


def test_nothing_is_recomputed_without_gradients():
    model, plain = of("unet", True).eval(), of("unet", False).eval()
    with torch.inference_mode():
        assert torch.equal(model(batches(1)[0]), plain(batches(1)[0]))
