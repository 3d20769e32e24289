"""Splits: the rule of the first version to the letter, laws of separation, and shares of rare classes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.footprint import footprints, overlapping, within
from jeoparda.ingest.source import Planned
from jeoparda.ingest.split import ColumnsBuilder, SplitRecipe, assign
from jeoparda.store import SPLITS

CLASSES = ("Water", "Woods", "Fields", "Peat", "Salines")
TRAIN, VAL, TEST = range(3)


def patch(i, x=0.0, y=0.0, classes=(0,), crs="EPSG:32633", pixel=10.0, **more):
    given_ = {"id": f"p{i:05d}", "source": "s", "date": "2017-06-13T10:00:00"} | more
    return Planned(crs=crs, transform=(pixel, 0.0, x, 0.0, -pixel, y), classes=tuple(classes), **given_)


def columns(patches, side=120):
    builder = ColumnsBuilder(side)
    for p in patches:
        builder.append(p)
    return builder.finish()


def dealt(patches, side=120, **recipe):
    return assign(SplitRecipe(**recipe), columns(patches, side), CLASSES)


def grid(n, step=1200.0, x=300_000.0, y=5_400_000.0, **more):
    return [patch(i * n + j, x + i * step, y - j * step, **more) for i in range(n) for j in range(n)]


def land(seed, n=2000, across=60):
    """Patches side by side, each of one to three classes: 0 everywhere, the others in fewer and fewer places."""
    rng = np.random.default_rng(seed)
    places = [rng.integers(0, across, (k, 2)) for k in (20, 8, 4, 2)]
    out = []
    for i, at in enumerate(rng.permutation(across * across)[:n]):
        here = np.array(divmod(int(at), across))
        near = [c + 1 for c, p in enumerate(places) if (np.abs(p - here).max(1) < 4).any()]
        out.append(patch(i, 300_000 + 1200.0 * here[0], 5_400_000 - 1200.0 * here[1], (0, *near)))
    return out


# ---- the columns


def test_columns_hold_what_was_put_in():
    patches = [
        patch(0, 1.5, -2.5, (3, 1), crs="", source="a.png", country="Österreich", split="val"),
        patch(1, classes=(), crs="", source="b.png", date=""),
        patch(2, crs="EPSG:32633", source="b.png", id="ä" * 40),
    ]
    c = columns(patches, 64)
    assert c.ids.tolist() == [p.id.encode() for p in patches] and c.side_px == 64 and len(c) == 3
    assert [c.crs_names[k] for k in c.crs] == ["", "", "EPSG:32633"]
    assert [tuple(t) for t in c.transform.tolist()] == [p.transform for p in patches]
    assert c.day.tolist() == [b"2017-06-13", b"", b"2017-06-13"]
    assert [c.countries[k] for k in c.country] == ["Österreich", "", ""] and [c.owns[k] for k in c.own] == [
        "val",
        "",
        "",
    ]
    assert [c.classes[c.start[i] : c.start[i + 1]].tolist() for i in range(3)] == [[3, 1], [], [0]]
    assert c.image[0] != c.image[1] and c.image[2] == 0


def test_columns_stay_small():
    c = columns(
        [patch(i, classes=(0, 1, 2), id=f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{i:05d}") for i in range(9000)]
    )
    parts = (c.ids, c.crs, c.transform, c.image, c.day, c.country, c.own, c.start, c.classes)
    assert sum(p.nbytes for p in parts) / len(c) < 160


# ---- blocks


def first_rule(s, p):
    """The rule of jeoparda 0.1, word for word: stores made by it must not change."""
    ulx, uly = p.transform[2], p.transform[5]
    block = f"{s.seed}/{p.crs}/{ulx // s.block_m:.0f}/{uly // s.block_m:.0f}"
    u = int.from_bytes(hashlib.sha256(block.encode()).digest()[:8], "big") / 2**64
    return "val" if u < s.val else "test" if u < s.val + s.test else "train"


@pytest.mark.parametrize("recipe", [{}, {"seed": 7, "val": 0.3, "test": 0.2}, {"block_m": 2400.5, "test": 0.0}])
def test_without_stratify_a_block_by_itself(recipe):
    rng = np.random.default_rng(3)
    patches = [
        patch(i, 1200 * int(x), 1200 * int(y), crs=f"EPSG:326{z}")
        for i, (x, y, z) in enumerate(
            zip(*rng.integers([[-40], [3000], [29]], [[400], [5000], [36]], (3, 600)), strict=True)
        )
    ]
    s = SplitRecipe(stratify=False, **recipe)
    found = assign(s, columns(patches), CLASSES)
    kept = found.split >= 0  # what overlaps between zones is left out, never moved
    assert kept.mean() > 0.95
    assert [SPLITS[k] for k in found.split[kept]] == [first_rule(s, p) for p, k in zip(patches, kept, strict=True) if k]


def test_golden_blocks():
    patches = [patch(i, 300_000 + 12e3 * (i % 8), 5.4e6 - 12e3 * (i // 8)) for i in range(48)]
    found = dealt(patches, stratify=False, val=0.2, test=0.2, seed=5)
    assert "".join("tve"[k] for k in found.split) == "ttettttevtetttvttteteetvttttevvttetvettttvtetett"


def test_the_archive_may_grow_without_patches_changing_sides():
    patches = grid(40)
    whole = dealt(patches, stratify=False)
    part = dealt(patches[:700], stratify=False)
    assert (whole.split[:700] == part.split).all()


@settings(max_examples=25, deadline=None)
@given(
    step=st.floats(200, 2000),
    block=st.floats(1500, 9000),
    stratify=st.booleans(),
    seed=st.integers(0, 99),
    buffer=st.sampled_from([None, 0.0, 700.0]),
    east=st.floats(0, 3000),
)
def test_law_no_judge_stands_on_training_ground(step, block, stratify, seed, buffer, east):
    """Whatever the stride, with the same land in two zones and two tiles of one zone."""
    patches = grid(9, step, 700_000.0)
    patches += [patch(1000 + i, p.transform[2] + east, p.transform[5] - 333) for i, p in enumerate(patches[:30])]
    patches += grid(9, step, 262_000.0 + east, 5_401_000.0, crs="EPSG:32634", classes=(0, 1))
    found = dealt(patches, stratify=stratify, seed=seed, block_m=block, buffer_m=buffer, val=0.2, test=0.2)
    c = columns(patches)
    ground, faults = footprints(c.crs, c.crs_names, c.transform, c.side_px, c.image)
    train, val, test = (ground[found.split == k] for k in range(3))
    assert not faults
    for judge, other in ((val, train), (test, train), (val, test)):
        assert not overlapping(judge, other).any()
        assert not within(other, judge, buffer or 0.0).any()
    assert ((found.split < 0) == (found.reason >= 0)).all()
    assert {found.reasons[k] for k in found.reason if k >= 0} == set(found.reasons)


def test_only_what_overlaps_is_left_out():
    patches = grid(30)
    assert (dealt(patches).split >= 0).all()
    near = dealt(patches, buffer_m=100.0)
    assert 0 < (near.split < 0).sum() < 400
    c = columns(patches)
    ground, _ = footprints(c.crs, c.crs_names, c.transform, 120, c.image)
    full = dealt(patches).split
    train = np.flatnonzero(full == TRAIN)
    gone = train[near.split[train] < 0]
    assert within(ground[gone], ground[full > 0], 100.0).all()
    assert set(near.reasons) <= {
        "val patch within 100 m of test ground",
        "train patch within 100 m of val or test ground",
    }


def test_images_without_crs_are_blocks_of_their_own():
    patches = [patch(i, float(i % 2), 0.0, crs="", source=f"{i // 2}.png", pixel=1.0) for i in range(400)]
    found = dealt(patches, val=0.3, test=0.3, stratify=False)
    assert (found.split[::2] == found.split[1::2]).all()  # the two of an image overlap and stay together
    assert np.bincount(found.split, minlength=3).min() > 60 and (found.split >= 0).all()


def test_blocks_in_degrees_are_as_wide_as_those_in_metres():
    degree = 1200 / 111_319.5
    patches = grid(40, degree, 10.0, 50.0, crs="EPSG:4326", pixel=degree / 120)
    found = dealt(patches, stratify=False, val=0.3, test=0.3)
    assert np.bincount(found.split[found.split >= 0], minlength=3).min() > 100
    square = found.split.reshape(40, 40)
    assert (square[1:] == square[:-1]).mean() > 0.85  # ten patches a side


def test_patches_without_a_place_are_left_out():
    found = dealt([*grid(4), patch(99, 1e12, 0.0), patch(98, crs="nonsense")])
    assert found.split[-2:].tolist() == [-1, -1] and (found.split[:-2] >= 0).all()
    assert "outside of where CRS EPSG:32633" in found.reasons[found.reason[-2]]
    assert "CRS nonsense is not understood" in found.reasons[found.reason[-1]]


# ---- stratification


def shares(found, patches, part):
    has = np.array([[c in p.classes for c in range(5)] for p in patches])
    return has[found.split == part].sum(0) / np.maximum(has.sum(0), 1)


@pytest.mark.parametrize("seed", range(5))
def test_stratified_shares_beat_those_of_chance(seed):
    patches = land(seed)
    by_class, by_chance = (
        dealt(patches, block_m=6000, seed=seed),
        dealt(patches, block_m=6000, seed=seed, stratify=False),
    )
    for part in (VAL, TEST):
        got, chance = shares(by_class, patches, part), shares(by_chance, patches, part)
        assert (np.abs(got - 0.1)).max() < (np.abs(chance - 0.1)).max()
        assert (np.abs(got[:3] - 0.1) < 0.05).all() and (got > 0).all()
    assert (shares(by_class, patches, TRAIN) > 0).all()


def test_a_block_goes_as_a_whole():
    patches = land(1)
    found = dealt(patches, block_m=6000)
    blocks = {}
    for p, k in zip(patches, found.split, strict=True):
        blocks.setdefault((p.transform[2] // 6000, p.transform[5] // 6000), set()).add(int(k))
    assert all(len(b) == 1 for b in blocks.values())


@pytest.mark.parametrize("by", [{}, {"stratify": False}, {"buffer_m": 500.0}])
def test_the_order_of_patches_does_not_matter(by):
    patches = land(2, 800) + grid(6, 700.0, 310_000.0, 5_390_000.0, classes=(1,))
    patches += [patch(9000 + i, crs="", source=f"{i}.png", classes=(i % 5,)) for i in range(40)]
    first = dealt(patches, block_m=6000, **by)
    order = np.random.default_rng(0).permutation(len(patches))
    again = dealt([patches[i] for i in order], block_m=6000, **by)
    assert (again.split == first.split[order]).all()
    assert [again.reasons[k] for k in again.reason if k >= 0] == [
        first.reasons[first.reason[i]] for i in order if first.reason[i] >= 0
    ]
    assert (dealt(patches, block_m=6000, seed=1, **by).split != first.split).any()


@pytest.mark.parametrize(("blocks", "parts"), [(1, {TRAIN}), (2, {TRAIN, TEST}), (3, {TRAIN, VAL, TEST})])
def test_a_class_of_few_blocks(blocks, parts):
    patches = grid(60) + [patch(9000 + i, 300_100.0 + 24_000 * i, 5_300_000, (4,)) for i in range(blocks)]
    found = dealt(patches)
    assert set(found.split[-blocks:].tolist()) == parts
    lacking = [n for n in found.notes if "has no patch of Salines" in n]
    assert len(lacking) == 3 - len(parts)


def test_shares_far_from_the_wanted_are_said():
    # Peat fills three blocks only: a third of it in each split is the best there is
    peat = [patch(9000 + 100 * b + i, 600_000.0 + 24_000 * b, 5.3e6, (3,)) for b in range(3) for i in range(40)]
    found = dealt(grid(60) + peat, buffer_m=None)
    said = "is to have 10% of each class, and has 33% of Peat (120 patches in all)"
    assert sum(said in n for n in found.notes) == 2, found.notes


def test_too_few_blocks_are_said():
    found = dealt(grid(3, y=5_399_000.0))
    assert set(found.split.tolist()) == {TRAIN}
    assert [n.split(":")[1].split(" of ")[0] for n in found.notes[:2]] == [
        " no block fell into val",
        " no block fell into test",
    ]


def test_unknown_classes_are_dealt_by_chance_and_said():
    patches = grid(40, classes=())
    found = dealt(patches)
    assert (found.split == dealt(patches, stratify=False).split).all() and "no classes are known" in found.notes[0]


# ---- lists, dates, countries, the archive's own


def test_lists(tmp_path):
    for name, ids in {"train": "0124", "val": "37", "test": "5"}.items():
        (tmp_path / f"{name}.csv").write_text("".join(f"p{int(i):05d},x\n" for i in ids))
    paths = {f"{s}_csv": tmp_path / f"{s}.csv" for s in SPLITS}
    found = dealt([patch(i) for i in range(7)], by="csv", **paths)
    assert found.split.tolist() == [0, 0, 0, 1, 0, 2, -1] and found.reasons == ("in no split list",)
    assert "split: 1 names of the split lists are not in the archive" in found.notes
    assert dealt([patch(i) for i in range(3)], by="csv", train_csv=paths["train_csv"]).split.tolist() == [0, 0, 0]
    # the lists' own leaks stay, unless ground is to be kept apart: all seven patches lie on each other
    apart = dealt([patch(i) for i in range(7)], by="csv", buffer_m=0.0, **paths)
    assert apart.split.tolist() == [-1, -1, -1, -1, -1, 2, -1]
    (tmp_path / "test.csv").write_text("p00005\np00001\n")
    with pytest.raises(RecipeError, match=r"test\.csv: patch p00001 stands in the train list too"):
        dealt([patch(0)], by="csv", **paths)
    with pytest.raises(RecipeError, match=r"x\.csv: cannot read the split list"):
        dealt([patch(0)], by="csv", train_csv=tmp_path / "x.csv")


def test_the_archive_s_own():
    found = dealt([patch(i, split=s) for i, s in enumerate(("val", "train", "", "test"))], by="archive")
    assert found.split.tolist() == [1, 0, -1, 2] and found.reasons == ("in no split of the archive's own",)
    with pytest.raises(RecipeError, match="this archive has no split of its own"):
        dealt([patch(0)], by="archive")
    with pytest.raises(ArchiveError, match="parts named dev, validation; expected train, val, test"):
        dealt([patch(0, split="validation"), patch(1, split="dev")], by="archive")


def test_dates():
    days = ("2016-12-31", "2017-12-31T23:59:59", "2018-01-01", "2018-05-31", "2018-06-01T00:00:00", "")
    patches = [patch(i, date=d) for i, d in enumerate(days)]
    found = dealt(patches, by="date", val_from="2018-01-01", test_from="2018-06-01")
    assert found.split.tolist() == [0, 0, 1, 1, 2, -1] and found.reasons == ("without a date",)
    assert dealt(patches, by="date", test_from="2018-01-01").split.tolist() == [0, 0, 2, 2, 2, -1]
    ranges = {"train_dates": ["2017-01-01/2017-12-31", "2018-06-01/2018-06-01"], "val_dates": ["2018-05-01/2018-05-31"]}
    found = dealt(patches, by="date", **ranges)
    assert found.split.tolist() == [-1, 0, -1, 1, 0, -1]
    assert [found.reasons[k] for k in found.reason if k >= 0] == [
        "outside of the dates of the split",
        "outside of the dates of the split",
        "without a date",
    ]


def test_countries():
    names = ("Austria", "Serbia", "Ireland", "", "Austria")
    patches = [patch(i, 1200.0 * i, country=c) for i, c in enumerate(names)]
    found = dealt(patches, by="country", val_countries=["Serbia"], test_countries=["Ireland"])
    assert found.split.tolist() == [0, 1, 2, -1, 0] and found.reasons == ("of no known country",)
    border = [*patches, patch(9, 1200.0 - 600, country="Austria")]  # lies half in Serbia's patch
    assert dealt(border, by="country", val_countries=["Serbia"]).split.tolist() == [0, 1, 0, -1, 0, -1]
    with pytest.raises(RecipeError, match="no patch lies in Siberia; the archive has Austria, Ireland, Serbia"):
        dealt(patches, by="country", val_countries=["Siberia"])
    with pytest.raises(RecipeError, match="does not say the countries"):
        dealt(grid(2), by="country", val_countries=["Serbia"])


def test_none_trains_all():
    assert set(dealt(grid(3), by="none").split.tolist()) == {TRAIN}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"val": 0.5, "test": 0.5}, "nothing is left to train on"),
        ({"by": "csv"}, r"needs split\.train_csv"),
        ({"by": "date"}, r"needs either split\.val_from"),
        ({"by": "date", "val_from": "2018-06-01", "test_from": "2018-01-01"}, "must be before"),
        ({"by": "date", "val_from": "1.6.2018"}, r"split\.val_from = 1\.6\.2018: expected a day"),
        ({"by": "date", "val_dates": ["2018-01-01/2018-02-01"]}, r"need split\.train_dates"),
        ({"by": "date", "train_dates": ["2018-01-01"]}, "the first and the last day"),
        (
            {"by": "date", "train_dates": ["2017-01-01/2018-01-05"], "val_dates": ["2018-01-05/2018-02-01"]},
            "2018-01-05 is a day of train and of val",
        ),
        ({"by": "country"}, r"needs split\.val_countries"),
        ({"by": "country", "val_countries": ["A"], "test_countries": ["A"]}, "A stands in"),
        ({"by": "date", "val_from": "2018-01-01", "block_m": 5.0}, r"split\.block_m = 5\.0 is for by: block"),
        ({"val_countries": ["A"]}, r"is for by: country, but split\.by = auto"),
    ],
)
def test_recipes_that_cannot_work(recipe, message):
    with pytest.raises(RecipeError, match=message):
        dealt(grid(2), **recipe)


@pytest.mark.parametrize("by", [{}, {"stratify": False}, {"by": "none"}, {"by": "date", "val_from": "2018-01-01"}])
def test_no_patches(by):
    assert not len(dealt([], **by).split)
