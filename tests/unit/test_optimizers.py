"""LARS and LAMB take the steps of their papers' algorithms, written out with numpy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from jeoparda.optimizers import OptimizerRecipe, build


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).double()


def lars(w, g, state, r, layerwise, t):
    decay, rate = (r.weight_decay, 1.0) if layerwise else (0.0, 1.0)
    if layerwise and np.linalg.norm(w) and np.linalg.norm(g):
        rate = r.trust * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
    state["v"] = r.momentum * state.get("v", 0) + r.lr * rate * (g + decay * w)
    return w - state["v"]


def lamb(w, g, state, r, layerwise, t):
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
    step = (state["m"] / (1 - 0.9**t)) / (np.sqrt(state["v"] / (1 - 0.999**t)) + 1e-6)
    step = step + (r.weight_decay * w if layerwise else 0)
    norms = np.linalg.norm(w), np.linalg.norm(step)
    return w - r.lr * (norms[0] / norms[1] if layerwise and all(norms) else 1) * step


@pytest.mark.parametrize(("kind", "by_hand"), [("lars", lars), ("lamb", lamb)])
def test_steps_are_the_paper_s(kind, by_hand):
    m, r = model(), OptimizerRecipe(kind=kind, lr=0.1, weight_decay=0.02, trust=0.01)
    with torch.no_grad():
        m[3].weight.zero_()  # a layer that begins at 0 has no norm to be scaled by
    optimizer, g = build(r, m), torch.Generator().manual_seed(1)
    expected = [p.detach().numpy().copy() for p in m.parameters()]
    states: list[dict] = [{} for _ in expected]
    for t in range(1, 6):
        for p in m.parameters():
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64)
        expected = [
            by_hand(w, p.grad.numpy(), state, r, p.ndim > 1, t)
            for w, p, state in zip(expected, m.parameters(), states, strict=True)
        ]
        optimizer.step()
        for p, w in zip(m.parameters(), expected, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars", "lamb"])
def test_state_comes_back_and_parameters_without_a_gradient_stay(kind):
    r, (one, other) = OptimizerRecipe(kind=kind, lr=0.1), (model(), model())
    first, second = build(r, one), build(r, other)

    def step(m, optimizer, seed):
        g = torch.Generator().manual_seed(seed)
        for p in list(m.parameters())[1:]:
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64)
        optimizer.step()

    before = one[0].weight.clone()
    step(one, first, 0)
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch shares tensors, a file does not
    step(one, first, 1)
    step(other, second, 1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(one[0].weight, before) and not torch.equal(one[3].weight, model()[3].weight)


def test_norms_and_biases_neither_decay_nor_are_scaled():
    for group in build(OptimizerRecipe(kind="lars"), model()).param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["layerwise"]} == {group["weight_decay"] > 0}
