"""Word location: exactness on covered texts, preference among several places, parts of tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.data.words import WordNotFoundError, joined_spans, locate_parts, locate_words

WORD = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=5)
ANY_TEXT = st.text(max_size=8)


def spans(text: str, words: list[str]) -> list[tuple[int, int]]:
    starts, ends = locate_words(text, words)
    assert starts.dtype == ends.dtype == np.int32
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("From the AP comes.", ["From", "the", "AP", "comes", "."], [0, 5, 9, 12, 17]),
        ("don't", ["do", "n't"], [0, 2]),
        ("a a a", ["a", "a", "a"], [0, 2, 4]),
        # Untokenised text in between.
        ("x <b>y</b> z", ["x", "y", "z"], [0, 5, 11]),
        # Stop words left out: the word that stands alone, not the piece of another word.
        ("hashed has", ["has"], [7]),
        ("the art a artist makes", ["art", "artist"], [4, 10]),
        # A clitic next to its word is no cut.
        ("can't [sic] go, ca", ["ca", "n't", "go"], [0, 2, 12]),
        # Words that touch are preferred.
        ("- x -y", ["-", "y"], [4, 5]),
        # A cut is taken where nothing else is possible.
        ("unhappy days", ["happy"], [2]),
        # Code points, not bytes or UTF-16 units.
        ("naïve 😀 Straße", ["naïve", "😀", "Straße"], [0, 6, 8]),
        ("日本語を話す", ["日本語", "を", "話す"], [0, 3, 4]),
        ("a\u00a0b", ["a", "b"], [0, 2]),
    ],
)
def test_places(text: str, words: list[str], expected: list[int]) -> None:
    found = spans(text, words)
    assert [start for start, _ in found] == expected
    assert [text[start:end] for start, end in found] == words


def test_no_words() -> None:
    assert spans("text", []) == []
    assert spans("", []) == []


def test_an_empty_word_has_an_empty_span_between_its_neighbours() -> None:
    (_, end_a), (start, end), (start_b, _) = spans("a b", ["a", "", "b"])
    assert start == end
    assert end_a <= start <= start_b


@pytest.mark.parametrize(
    ("text", "words", "index"),
    [
        ("the cat", ["the", "dog"], 1),
        ("the cat", ["cat", "the"], 1),  # order matters
        ("aa", ["a", "a", "a"], 2),  # no place is used twice
        ("caf\u00e9", ["cafe\u0301"], 0),  # another normal form is another text
        ("", ["a"], 0),
    ],
)
def test_a_missing_word_is_named(text: str, words: list[str], index: int) -> None:
    with pytest.raises(WordNotFoundError, match="is not in the text") as caught:
        locate_words(text, words)
    assert (caught.value.index, caught.value.word) == (index, words[index])


@given(st.lists(st.tuples(WORD, st.sampled_from(["", " ", "  ", "\n", "\u00a0", "\u3000"]))))
def test_words_that_cover_the_text_are_found_exactly(pieces: list[tuple[str, str]]) -> None:
    text, expected = "", []
    for word, space in pieces:
        expected.append((len(text), len(text) + len(word)))
        text += word + space
    assert spans(text, [word for word, _ in pieces]) == expected


@given(st.lists(st.tuples(st.text("ab ", max_size=3), st.text("ab", min_size=1, max_size=3))))
def test_whatever_has_a_place_is_found_in_order(pieces: list[tuple[str, str]]) -> None:
    text = "".join(gap + word for gap, word in pieces)
    words = [word for _, word in pieces]
    found = spans(text, words)
    assert [text[start:end] for start, end in found] == words
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))


def _cuts(text: str, chosen: tuple[int, ...], words: tuple[str, ...]) -> int:
    edges = [
        edge
        for start, word in zip(chosen, words, strict=True)
        for edge in (start, start + len(word))
    ]
    lone = [edge for edge in edges if edges.count(edge) == 1]
    return sum(
        0 < edge < len(text) and text[edge - 1].isalnum() and text[edge].isalnum() for edge in lone
    )


@given(
    st.text("ab -", max_size=12),
    st.lists(st.text("ab-", min_size=1, max_size=3), min_size=1, max_size=3).map(tuple),
)
def test_fewest_cuts_of_all_placements(text: str, words: tuple[str, ...]) -> None:
    """Against every placement there is."""
    placements = [
        chosen
        for chosen in itertools.product(range(len(text)), repeat=len(words))
        if all(text.startswith(word, at) for word, at in zip(words, chosen, strict=True))
        and all(
            a + len(w) <= b for (a, b), w in zip(itertools.pairwise(chosen), words, strict=False)
        )
    ]
    if not placements:
        with pytest.raises(WordNotFoundError):
            locate_words(text, words)
        return
    chosen = tuple(locate_words(text, words)[0].tolist())
    assert chosen in placements
    assert _cuts(text, chosen, words) == min(_cuts(text, one, words) for one in placements)


@given(st.lists(ANY_TEXT))
def test_joined_spans_are_those_of_the_joined_text(words: list[str]) -> None:
    text = " ".join(words)
    starts, ends = joined_spans(words)
    assert starts.dtype == ends.dtype == np.int32
    assert [text[s:e] for s, e in zip(starts.tolist(), ends.tolist(), strict=True)] == words
    assert len(words) == 0 or (starts[0] == 0 and ends[-1] == len(text))


@pytest.mark.parametrize(
    ("surface", "parts", "expected"),
    [
        ("don't", ["do", "n't"], [(0, 2), (2, 5)]),
        ("cannot", ["can", "not"], [(0, 3), (3, 6)]),
        ("du", ["de", "le"], [(0, 2), (0, 2)]),
        ("zum", ["zu", "dem"], [(0, 2), (0, 3)]),
        ("della", ["di", "la"], [(0, 5), (3, 5)]),
        ("vámonos", ["vamos", "nos"], [(0, 7), (4, 7)]),
        # After a word that got the whole token, ends must not go back.
        ("dámelo", ["da", "me", "lo"], [(0, 6), (0, 6), (4, 6)]),
        ("aa", ["a", "a", "a"], [(0, 1), (1, 2), (0, 2)]),
    ],
)
def test_parts(surface: str, parts: list[str], expected: list[tuple[int, int]]) -> None:
    assert locate_parts(surface, parts) == expected


@given(st.text("abc", min_size=1, max_size=6), st.lists(st.text("abc", max_size=3), min_size=1))
def test_parts_are_spelled_out_or_the_whole(surface: str, parts: list[str]) -> None:
    found = locate_parts(surface, parts)
    assert len(found) == len(parts)
    whole = (0, len(surface))
    for part, (start, end) in zip(parts, found, strict=True):
        assert surface[start:end] == part or (start, end) == whole
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(found))
    if "".join(parts) == surface and all(parts):
        ends = list(itertools.accumulate(len(part) for part in parts))
        assert [end for _, end in found] == ends
