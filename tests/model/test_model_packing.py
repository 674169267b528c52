"""Packs: every text once, no padding, a function of the lengths alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actstore.model.packing import MIN_ROWS, Group, make_packs

lengths = st.lists(st.integers(0, 40), max_size=60)


@given(lengths, st.integers(1, 100), st.integers(1, 50))
def test_every_text_with_tokens_is_in_one_pack(sizes: list[int], rows: int, limit: int) -> None:
    packs = make_packs(sizes, max_rows=rows, max_length=limit)
    placed = [int(text) for pack in packs for text in pack.texts]
    expected = sorted((i for i, n in enumerate(sizes) if n), key=lambda i: sizes[i])
    assert placed == expected
    for pack in packs:
        n = sum(sizes[text] for text in pack.texts)
        assert n <= rows or len(pack.texts) == 1
        assert pack.n_text_rows == n
        assert pack.n_rows == max(n, MIN_ROWS)


@given(lengths, st.integers(1, 100), st.integers(1, 50))
def test_groups_tile_the_pack(sizes: list[int], rows: int, limit: int) -> None:
    for pack in make_packs(sizes, max_rows=rows, max_length=limit):
        row = 0
        spans = []
        for group in pack.groups:
            assert group.start == row
            spans += [group.length] * group.count
            row += group.length * group.count
        assert row == pack.n_rows
        n = len(pack.texts)
        assert spans[:n] == [sizes[text] for text in pack.texts]
        assert sum(spans[n:]) == pack.n_dummy
        assert all(length <= limit for length in spans[n:])


@given(lengths, st.integers(1, 100))
def test_no_pack_could_have_held_the_next_text(sizes: list[int], rows: int) -> None:
    packs = make_packs(sizes, max_rows=rows)
    for pack, following in pairwise(packs):
        assert pack.n_text_rows + sizes[following.texts[0]] > rows


@given(lengths, st.integers(1, 100))
def test_lists_and_arrays_give_the_same_packs(sizes: list[int], rows: int) -> None:
    one = make_packs(sizes, max_rows=rows)
    two = make_packs(np.array(sizes, np.int64), max_rows=rows)
    assert [(p.texts.tolist(), p.groups) for p in one] == [
        (p.texts.tolist(), p.groups) for p in two
    ]


def test_equal_lengths_form_one_group_in_input_order() -> None:
    (pack,) = make_packs([3, 20, 3, 0, 3], max_rows=64)
    assert pack.texts.tolist() == [0, 2, 4, 1]
    assert pack.groups == (Group(0, 3, 3), Group(9, 1, 20))
    assert pack.n_dummy == 0


def test_dummy_rows_bring_a_small_pack_to_the_minimum() -> None:
    (pack,) = make_packs([3], max_rows=64, max_length=10)
    assert pack.groups == (Group(0, 1, 3), Group(3, 1, 10), Group(13, 1, 3))
    assert (pack.n_rows, pack.n_dummy, pack.n_text_rows) == (16, 13, 3)


def test_one_text_a_pack_without_a_minimum() -> None:
    packs = make_packs([2, 5, 0, 5], max_rows=1, min_rows=0)
    assert [pack.texts.tolist() for pack in packs] == [[0], [1], [3]]
    assert [pack.n_rows for pack in packs] == [2, 5, 5]


def test_nothing_to_pack() -> None:
    assert make_packs([], max_rows=8) == []
    assert make_packs([0, 0], max_rows=8) == []
