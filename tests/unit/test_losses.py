"""Losses are what their papers' formulas say, of whole labels and of shares."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from jeoparda.config import check
from jeoparda.errors import RecipeError
from jeoparda.losses import LossRecipe, balance, build, multilabel, plain

RECIPES = [
    LossRecipe(),
    LossRecipe(smoothing=0.1),
    LossRecipe(kind="focal"),
    LossRecipe(kind="focal", focus=0.5, weights="balanced"),
    LossRecipe(kind="asymmetric"),
    LossRecipe(kind="asymmetric", margin=1e-6),
    LossRecipe(kind="asymmetric", focus_present=1.0, focus_absent=2.0, margin=0.0, smoothing=0.2),
]
WEIGHT = torch.tensor([0.5, 1.0, 4.0, 2.0], dtype=torch.float64)


def drawn(scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.rand(9, 4, generator=g, dtype=torch.float64)
    labels[:6] = (labels[:6] < 0.4).double()  # the last three are mixed
    return scale * torch.randn(9, 4, generator=g, dtype=torch.float64), labels


def by_hand(r: LossRecipe, logits: torch.Tensor, labels: torch.Tensor) -> float:
    total = 0.0
    for x, y, w in zip(logits.flatten().tolist(), labels.flatten().tolist(), WEIGHT.tolist() * 9, strict=True):
        p = 1 / (1 + np.exp(-x))
        there, absent = -np.log(p), -np.log(1 - p)
        if r.kind == "focal":
            there, absent = (1 - p) ** r.focus * there, p**r.focus * absent
        if r.kind == "asymmetric":
            m = max(p - r.margin, 0)
            there, absent = (1 - p) ** r.focus_present * there, -(m**r.focus_absent) * np.log(1 - m)
        y = y * (1 - r.smoothing) + r.smoothing / 2
        total += y * there * (w if r.weights == "balanced" else 1) + (1 - y) * absent
    return total / 4


@pytest.mark.parametrize("r", RECIPES)
def test_losses_are_the_formulas_and_add_up_over_ranks(r):
    logits, labels = drawn()
    loss = build(r, WEIGHT if r.weights == "balanced" else None)
    assert loss(logits, labels).item() == pytest.approx(by_hand(r, logits, labels), rel=1e-12)
    parts = sum(loss(a, b) for a, b in zip(logits.split([2, 0, 7]), labels.split([2, 0, 7]), strict=True))
    assert parts.item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)


@pytest.mark.parametrize("r", RECIPES)
def test_gradients_are_those_of_the_loss_and_finite_far_out(r):
    logits, labels = drawn()
    loss = build(r, WEIGHT if r.weights == "balanced" else None)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.clone().requires_grad_())
    far = torch.tensor([[-200.0, 200.0, -30.0, 30.0]] * 9, requires_grad=True)
    value = loss(far, labels.float())
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(far.grad).all()


def test_exponents_of_0_leave_the_plain_loss():
    logits, labels = drawn()
    for r in (LossRecipe(kind="focal", focus=0.0), LossRecipe(smoothing=1e-15)):
        assert build(r)(logits, labels).item() == pytest.approx(multilabel(logits, labels).item(), rel=1e-12)


def test_balance_is_absent_over_present_within_bounds():
    labels = np.zeros((20, 4), np.uint8)
    labels[:10, 0] = labels[:1, 1] = labels[:, 2] = 1
    r = LossRecipe(weights="balanced")
    assert balance(r, labels).tolist() == [1.0, 10.0, 0.1, 1.0]  # 19 and 0 are too much and too little
    assert balance(LossRecipe(weights="balanced", largest_weight=30.0), labels)[1] == 19
    assert balance(LossRecipe(), labels) is None


def test_exponents_that_have_no_gradient_are_refused():
    with pytest.raises(RecipeError, match=r"focus_absent = 0\.5"):
        check(LossRecipe, {"focus_absent": 0.5})
    with pytest.raises(RecipeError, match=r"loss\.margin = 1e-08: is lost in rounding"):
        build(LossRecipe(kind="asymmetric", margin=1e-8))


# ---- one class a patch

SINGLE = [
    LossRecipe(),
    LossRecipe(smoothing=0.1),
    LossRecipe(weights="balanced", smoothing=0.2),
    LossRecipe(kind="focal"),
    LossRecipe(kind="focal", focus=0.5, weights="balanced", smoothing=0.1),
]


def one_of_four() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, class numbers, and shares of classes as labels: those of one class, the last three mixed."""
    g = torch.Generator().manual_seed(1)
    numbers = torch.randint(4, (9,), generator=g)
    labels = F.one_hot(numbers, 4).double()
    labels[6:] = 0.7 * labels[6:] + 0.3 * labels[:3]
    return 3 * torch.randn(9, 4, generator=g, dtype=torch.float64), numbers, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_softmax_cross_entropy_is_torch_s(smoothing, weights):
    logits, numbers, shares = one_of_four()
    weight = WEIGHT if weights == "balanced" else None
    loss = build(LossRecipe(smoothing=smoothing, weights=weights), weight, "single-label")
    how = {"weight": weight, "label_smoothing": smoothing, "reduction": "sum"}
    for target, labels in ((numbers, F.one_hot(numbers, 4).double()), (shares, shares)):
        assert loss(logits, labels).item() == pytest.approx(F.cross_entropy(logits, target, **how).item(), rel=1e-12)
    assert plain(logits, shares, "single-label").item() == pytest.approx(
        F.cross_entropy(logits, shares, reduction="sum").item(), rel=1e-12
    )
    assert plain(logits, shares) == multilabel(logits, shares) != plain(logits, shares, "single-label")


@pytest.mark.parametrize("r", SINGLE)
def test_softmax_losses_by_hand_add_up_over_ranks_and_have_gradients(r):
    logits, _, labels = one_of_four()
    weight = WEIGHT if r.weights == "balanced" else None
    loss = build(r, weight, "single-label")
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    y = labels.numpy() * (1 - r.smoothing) + r.smoothing / 4
    each = y * (1 - p) ** (r.focus if r.kind == "focal" else 0) * -np.log(p)
    assert loss(logits, labels).item() == pytest.approx((each * (1 if weight is None else WEIGHT.numpy())).sum())
    parts = sum(loss(a, b) for a, b in zip(logits.split([2, 0, 7]), labels.split([2, 0, 7]), strict=True))
    assert parts.item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.clone().requires_grad_())
    far = torch.tensor([[-200.0, 200.0, -30.0, 30.0]] * 9, requires_grad=True)
    value = loss(far, labels.float())
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(far.grad).all()


def test_balanced_weights_of_one_class_a_patch_are_scikit_learn_s():
    numbers = np.repeat([0, 1, 2], [30, 8, 2])
    labels = np.eye(4, dtype=np.uint8)[numbers]  # the last class has none
    found = balance(LossRecipe(weights="balanced"), labels[:, :3], "single-label")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=numbers)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert balance(LossRecipe(weights="balanced", largest_weight=2.0), labels, "single-label").tolist() == [
        0.5, 40 / 4 / 8, 2.0, 1.0,
    ]  # fmt: skip


def test_asymmetric_is_refused_where_a_patch_has_one_class():
    with pytest.raises(RecipeError, match=r"loss\.kind = asymmetric: .* take cross-entropy or focal"):
        build(LossRecipe(kind="asymmetric"), None, "single-label")
