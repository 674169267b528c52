"""Escaping, Markdown code spans, and numbers as text."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.report.text import code, count, decimal, escape, interval, visible, words

anything = st.text(st.characters(exclude_categories=()))


@given(anything)
def test_escaped_text_has_no_markup_and_reads_back(text: str) -> None:
    safe = escape(text)
    assert not set("<>\"'") & set(safe)
    assert html.unescape(safe) == visible(text)
    assert safe.encode("utf-8").decode() == safe


@given(anything)
def test_visible_is_one_line_and_idempotent(text: str) -> None:
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in shown)
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\nb", "a␊b"),
        ("a\x00b", "a␀b"),
        ("\x7f", "␡"),
        ("user\u202etxt", "user⟨U+202E⟩txt"),
        ("\ud800", "⟨U+D800⟩"),
        ("déjà 漢字 👩\u200d💻", "déjà 漢字 👩\u200d💻"),
    ],
)
def test_control_characters_become_marks_and_letters_stay(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown


@given(anything, st.booleans())
def test_code_span_reads_back_in_markdown(text: str, cell: bool) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    shown = visible(text)
    source = f"|h|\n|-|\n|x{code(text, cell=True)}|" if cell else f"x{code(text)}"
    inline = [token for token in markdown.parse(source) if token.type == "inline"][-1]
    kinds = [(child.type, child.content) for child in inline.children]
    expected = shown or " "
    assert kinds == [("text", "x"), ("code_inline", expected)] or (
        # A span of spaces alone is not stripped, so it keeps the pair that we added.
        not shown.strip(" ") and kinds[1][0] == "code_inline" and not kinds[1][1].strip(" ")
    )


def test_numbers_as_text() -> None:
    assert decimal(0.91249) == "0.912"
    assert decimal(-0.25, 2) == "\u22120.25"
    assert decimal(-0.0001) == "0.000"
    assert decimal(None) == "–"
    assert interval(0.912, 0.901, 0.923) == "0.912 [0.901, 0.923]"
    assert interval(0.912, None, 0.923) == "0.912"
    assert interval(None, 0.1, 0.2) == "–"
    assert [count(n, "fit") for n in (0, 1, 1200)] == ["0 fits", "1 fit", "1,200 fits"]
    assert count(2, "child", "children") == "2 children"
    assert words("mean_difference") == "mean difference"
    assert words("mlp") == "MLP"
