"""Patches over a scene."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jeoparda.grid import PatchGrid


@given(height=st.integers(1, 900), width=st.integers(1, 900), size=st.integers(1, 300), stride=st.integers(1, 300))
def test_all_whole_patches_and_no_other(height, width, size, stride):
    g = PatchGrid(height, width, size, stride)
    rows = [r for r in range(0, height, stride) if r + size <= height]
    cols = [c for c in range(0, width, stride) if c + size <= width]
    assert (g.rows, g.cols) == (len(rows), len(cols))
    if rows and cols:
        assert g.window(len(rows) - 1, len(cols) - 1) == (rows[-1], cols[-1], size, size)


@pytest.mark.parametrize("stride", [40, 60, 120, 150])
def test_a_cell_of_the_map_lies_over_the_middle_of_its_patch(stride):
    scene = (10.0, 0.0, 300_000.0, 0.0, -10.0, 5_800_020.0)
    g = PatchGrid(1000, 1000, 120, stride)
    a, b, c, d, e, f = g.transform(scene)
    assert (a, b, d, e) == (10 * stride, 0, 0, -10 * stride)
    for row, col in ((0, 0), (1, 3)):
        top, left, side, _ = g.window(row, col)
        middle = (300_000 + 10 * (left + side / 2), 5_800_020 - 10 * (top + side / 2))
        assert (c + a * (col + 0.5), f + e * (row + 0.5)) == pytest.approx(middle, abs=1e-6)
