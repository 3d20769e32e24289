"""Who does which part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jeoparda.partition import shards, share, spans


@given(count=st.integers(0, 10_000), parts=st.integers(1, 200))
def test_shares_cover_everything_once_and_evenly(count, parts):
    all_of_them = [share(count, p, parts) for p in range(parts)]
    assert [i for s in all_of_them for i in s] == list(range(count))
    assert max(map(len, all_of_them)) - min(map(len, all_of_them)) <= 1


@given(count=st.integers(0, 5000), per_shard=st.integers(1, 600))
def test_shards_cover_everything_once(count, per_shard):
    parts = shards(count, per_shard)
    assert [i for s in parts for i in s] == list(range(count))
    assert all(len(s) == per_shard for s in parts[:-1]) and all(1 <= len(s) <= per_shard for s in parts[-1:])


@pytest.mark.parametrize(("part", "parts"), [(3, 3), (-1, 3), (0, 0)])
def test_a_part_that_is_none(part, parts):
    with pytest.raises(ValueError, match="expected 0 <= part < parts"):
        share(10, part, parts)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([1, 2, 3, 7], "1-3, 7"), ([0, 2, 3], "0, 2-3"), ([5, 6], "5-6")]
)
def test_spans_are_said_shortly(numbers, text):
    assert spans(numbers) == text
