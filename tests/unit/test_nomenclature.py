"""Coarser classes: every CORINE class falls where its code says."""

import numpy as np
import pytest

from jeoparda.errors import RecipeError
from jeoparda.nomenclature import CLC, CLC_BY_NAME, LEVEL_1, LEVEL_2, coarser, corine_level, nomenclature

BEN43, BEN19 = nomenclature("bigearthnet-43"), nomenclature("bigearthnet-19")
ALL = tuple(c.name for c in CLC)


@pytest.mark.parametrize(("to", "names", "digits"), [("corine-2", LEVEL_2, 10), ("corine-1", LEVEL_1, 100)])
@pytest.mark.parametrize("classes", [BEN43.classes, ALL, ALL[::-1]])
def test_levels_go_by_the_code(to, names, digits, classes):
    found, colors, matrix = coarser(classes, to)
    assert found == tuple(names.values()) and matrix.shape == (len(classes), len(found)) and matrix.dtype == np.uint8
    assert (matrix.sum(1) == 1).all()  # each class falls into one
    for name, row in zip(classes, matrix, strict=True):
        assert found[row.argmax()] == names[CLC_BY_NAME[name].code // digits]
    assert len(set(colors)) == len(colors)
    assert all(CLC_BY_NAME[next(c.name for c in CLC if c.color == k)].code % digits in (1, 11) for k in colors)


def test_the_19_classes_are_those_that_ingest_makes():
    names, colors, matrix = coarser(BEN43.classes, "bigearthnet-19")
    assert (names, colors) == (BEN19.classes, BEN19.colors)
    for name, row in zip(BEN43.classes, matrix, strict=True):
        assert np.flatnonzero(row).tolist() == BEN19.encode([name])
    assert (matrix.sum(1) == 0).sum() == 11  # dropped


def test_level_1_of_level_2_is_that_of_level_3():
    level2, _, up2 = coarser(BEN43.classes, "corine-2")
    level1, colors, up21 = coarser(level2, "corine-1")
    again, colors_again, up1 = coarser(BEN43.classes, "corine-1")
    assert (level1, colors) == (again, colors_again)
    np.testing.assert_array_equal(up2 @ up21, up1)


def test_classes_that_nothing_falls_into_are_left_out():
    names, _, matrix = coarser(("Sea and ocean", "Vineyards", "Olive groves"), "corine-2")
    assert names == ("Permanent crops", "Marine waters")
    assert matrix.tolist() == [[0, 1], [1, 0], [1, 0]]


def test_levels_are_told_by_their_names():
    assert [corine_level(c) for c in (BEN43.classes, tuple(LEVEL_2.values()), BEN19.classes, ("wheat",))] == [
        3, 2, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "to", "told"),
    [
        (BEN19.classes, "corine-2", r"corine-2: .* 'Urban fabric', which in BigEarthNet-19 is 111, 112 together"),
        (BEN19.classes, "corine-1", "some span several classes of level 2, and some CORINE classes stand in none"),
        (("Pastures", "wheat"), "corine-1", "the store has 'wheat'; take labels = store"),
        (tuple(LEVEL_2.values()), "bigearthnet-19", "the store's classes are of CORINE level 2; take"),
        (tuple(LEVEL_2.values()), "corine-2", "take labels = store, or corine-1"),
        (("Dump sites", "Airports"), "bigearthnet-19", "drops all of the store's classes, Dump sites, Airports"),
    ],
)
def test_classes_of_another_kind_are_refused(classes, to, told):
    with pytest.raises(RecipeError, match=told):
        coarser(classes, to)
