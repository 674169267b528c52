"""Packs: which texts share one forward pass, and where each text lies in it. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_ROWS", "Group", "Pack", "make_packs"]

# Matrix products of a few rows take another code path, with other rounding, than larger ones;
# a pack never has fewer rows than this, so that a row does not depend on its company.
MIN_ROWS = 16


@dataclass(frozen=True)
class Group:
    """`count` texts of `length` tokens each that lie one after another from row `start`."""

    start: int
    count: int
    length: int


@dataclass(frozen=True)
class Pack:
    """Texts that share one forward pass, shortest first, without padding.

    `texts` are indices into the list of texts. The last `n_dummy` rows belong to no text: they
    only bring the pack to `MIN_ROWS`. `groups` cover all rows, dummy rows included.
    """

    texts: npt.NDArray[np.int64]
    groups: tuple[Group, ...]
    n_rows: int
    n_dummy: int

    @property
    def n_text_rows(self) -> int:
        return self.n_rows - self.n_dummy


def make_packs(
    lengths: Sequence[int] | npt.NDArray[np.int64],
    *,
    max_rows: int,
    min_rows: int = MIN_ROWS,
    max_length: int | None = None,
) -> list[Pack]:
    """Cut the texts, in stable order of length, into packs of at most `max_rows` rows.

    A function of the arguments alone, so a repeated run computes the same packs. Texts without
    tokens are in no pack; a text longer than `max_rows` is a pack of its own. Dummy rows form
    texts of at most `max_length` tokens.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(sizes, kind="stable")
    order = order[np.searchsorted(sizes[order], 1) :]
    packs: list[Pack] = []
    begin = rows = 0
    for at, text in enumerate(order):
        size = int(sizes[text])
        if at > begin and rows + size > max_rows:
            packs.append(_pack(order[begin:at], sizes, min_rows, max_length))
            begin, rows = at, 0
        rows += size
    if begin < len(order):
        packs.append(_pack(order[begin:], sizes, min_rows, max_length))
    return packs


def _pack(
    texts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    min_rows: int,
    max_length: int | None,
) -> Pack:
    groups: list[Group] = []
    start = 0
    for length, count in zip(*np.unique(sizes[texts], return_counts=True), strict=True):
        groups.append(Group(start, int(count), int(length)))
        start += int(length) * int(count)
    n_dummy = left = max(0, min_rows - start)
    while left:
        length = min(left, max_length or left)
        groups.append(Group(start, 1, length))
        start += length
        left -= length
    return Pack(texts, tuple(groups), start, n_dummy)
