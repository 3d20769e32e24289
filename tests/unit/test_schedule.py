"""The learning rate over a run."""

import numpy as np
import pytest
import torch

from jeoparda.errors import RecipeError
from jeoparda.schedule import ScheduleRecipe, check_shares, factor


def curve(kind: str, steps: int, warmup: float) -> np.ndarray:
    r = ScheduleRecipe(kind=kind, warmup=warmup)
    return np.array([factor(r, s, steps) for s in range(steps)])


@pytest.mark.parametrize("kind", ["one-cycle", "cosine", "steps", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.9])
def test_it_rises_and_falls_between_0_and_the_peak(kind, steps, warmup):
    f = curve(kind, steps, warmup)
    top = int(f.argmax())
    assert (f > 0).all() and (f <= 1).all()
    assert (np.diff(f[: top + 1]) >= 0).all() and (np.diff(f[top:]) <= 1e-12).all()


def test_one_cycle_is_torch_s_own():
    steps, warmup = 400, 0.3
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # torch counts the rise to step warmup * steps - 1, so let its share be one step longer
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, pct_start=warmup + 1 / steps, final_div_factor=25.0**-1 * 1e4, div_factor=25
    )
    expected = []
    for _ in range(steps):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(curve("one-cycle", steps, warmup), expected, atol=1e-9)


def test_ends():
    one = curve("one-cycle", 1000, 0.3)
    assert one[0] == pytest.approx(1 / 25) and one[300] == pytest.approx(1) and one[-1] == pytest.approx(1e-4)
    cosine = curve("cosine", 1000, 0.0)
    assert cosine[0] == 1 and cosine[500] == pytest.approx(0.5) and 0 < cosine[-1] < 1e-5
    rise = curve("constant", 10, 0.4)
    np.testing.assert_allclose(rise, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


def test_steps_decay_where_they_are_told_to():
    f = curve("steps", 100, 0.1)
    assert np.allclose(f[10:50], 1) and np.allclose(f[50:75], 0.1) and np.allclose(f[75:], 0.01)


@pytest.mark.parametrize("at", [(30.0, 60.0), (-0.5,), (0.0,), (0.5, 1.0)])
def test_shares_that_are_none_are_refused(at):
    check_shares(ScheduleRecipe(kind="steps"))
    with pytest.raises(RecipeError, match=r"schedule\.at = .*between 0 and 1"):
        check_shares(ScheduleRecipe(kind="steps", at=at))
