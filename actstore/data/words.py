"""Where the words of an example stand in its text, in characters (code points)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Spans", "WordNotFoundError", "joined_spans", "locate_parts", "locate_words"]

Int32 = npt.NDArray[np.int32]
Spans = tuple[Int32, Int32]


class WordNotFoundError(ValueError):
    """Word number `index` (from 0) does not occur in the text after the words before it."""

    def __init__(self, index: int, word: str) -> None:
        super().__init__(f"word {index} {word!r} is not in the text after the words before it")
        self.index = index
        self.word = word


def joined_spans(words: Sequence[str]) -> Spans:
    """Spans of the words in `" ".join(words)`: int32 starts and ends, [n_words] each."""
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    ends = np.cumsum(lengths + 1) - 1
    return (ends - lengths).astype(np.int32), ends.astype(np.int32)


def locate_words(text: str, words: Sequence[str]) -> Spans:
    """Spans of `words` in `text`: int32 starts and ends, [n_words] each, in order, no overlap.

    Text between words is free. Where more than one place is possible, as few word edges as
    possible cut a run of letters and digits whose other part is no word ("has" is not found
    inside "hashed" if it also stands alone); then words that touch, then the leftmost places,
    are preferred. An empty word gets an empty span. Raises WordNotFoundError for the first word
    that has no place.
    """
    lengths = [len(word) for word in words]
    first = _leftmost(text, words)
    # The same search on the mirrored text gives the last possible places.
    mirrored = _leftmost(text[::-1], [word[::-1] for word in reversed(words)])
    last = [len(text) - start - size for start, size in zip(mirrored[::-1], lengths, strict=True)]
    starts = first if first == last else _best(text, words, first, last)
    begin = np.array(starts, dtype=np.int32)
    return begin, begin + np.array(lengths, dtype=np.int32)


def locate_parts(surface: str, parts: Sequence[str]) -> list[tuple[int, int]]:
    """Spans within `surface` of the syntactic words that it is made of ("don't": do, n't).

    A part that is spelled out in order gets its own span, any other the whole surface ("du" for
    both de and le). After a part that got the whole, only a part at the very end gets its own,
    so that ends never decrease.
    """
    spans: list[tuple[int, int]] = []
    cursor = 0
    whole_before = False
    for part in parts:
        if whole_before:
            start = max(cursor, len(surface) - len(part))
            start = start if surface[start:] == part else -1
        else:
            start = surface.find(part, cursor)
        if start < 0 or not part:
            whole_before = True
            spans.append((0, len(surface)))
        else:
            cursor = start + len(part)
            spans.append((start, cursor))
    return spans


def _leftmost(text: str, words: Sequence[str]) -> list[int]:
    starts: list[int] = []
    cursor = 0
    for index, word in enumerate(words):
        start = text.find(word, cursor)
        if start < 0:
            raise WordNotFoundError(index, word)
        starts.append(start)
        cursor = start + len(word)
    return starts


def _best(text: str, words: Sequence[str], first: list[int], last: list[int]) -> list[int]:
    """Dynamic programme over each word's possible starts, all between `first` and `last`.

    A state's cost counts cuts up to the word's left edge; its right edge is charged once it is
    known whether the next word begins exactly there.
    """
    # Per word: its candidate starts, and for each the number of the best candidate before it.
    candidates: list[list[int]] = []
    came_from: list[list[int]] = []
    starts, costs, size = [0], [0], 0  # a word of no length at the start of the text
    for index, word in enumerate(words):
        here = _occurrences(text, word, first[index], last[index])
        ends = [start + size for start in starts]
        touching = {end: number for number, end in enumerate(ends)}
        here_costs: list[int] = []
        here_from: list[int] = []
        best, best_cost, reached = -1, 0, 0  # best candidate that ends before this word
        for start in here:
            while reached < len(ends) and ends[reached] < start:
                cost = costs[reached] + _cuts(text, ends[reached])
                if best < 0 or cost < best_cost:
                    best, best_cost = reached, cost
                reached += 1
            cost, source = best_cost + _cuts(text, start), best
            adjacent = touching.get(start)
            if adjacent is not None and (source < 0 or costs[adjacent] <= cost):
                cost, source = costs[adjacent], adjacent
            here_costs.append(cost)
            here_from.append(source)
        candidates.append(here)
        came_from.append(here_from)
        starts, costs, size = here, here_costs, len(word)
    totals = [cost + _cuts(text, start + size) for start, cost in zip(starts, costs, strict=True)]
    number = totals.index(min(totals))
    chosen: list[int] = []
    for here, sources in zip(reversed(candidates), reversed(came_from), strict=True):
        chosen.append(here[number])
        number = sources[number]
    return chosen[::-1]


def _occurrences(text: str, word: str, low: int, high: int) -> list[int]:
    found: list[int] = []
    start = text.find(word, low)
    while 0 <= start <= high:
        found.append(start)
        start = text.find(word, start + 1)
    return found


def _cuts(text: str, position: int) -> int:
    """1 if a word edge here would divide a run of letters and digits."""
    return int(
        0 < position < len(text) and text[position - 1].isalnum() and text[position].isalnum()
    )
