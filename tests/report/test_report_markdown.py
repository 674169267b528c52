"""The Markdown report: short, complete, and inert whatever the names are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import Row, row, sweep

from actstore.errors import InputError
from actstore.report import render_markdown
from actstore.report.markdown import MAX_TABLE_ROWS
from actstore.report.text import visible

CONTEXT = {"command": "actstore probe", "store": "acts"}
HARMLESS = {
    *("heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text"),
    *("table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close"),
    *("tr_open", "tr_close", "th_open", "th_close", "td_open", "td_close", "code_inline"),
    *("bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"),
    *("strong_open", "strong_close"),
}


def render(rows: list[Row], **changes: object) -> str:
    arguments: dict[str, object] = {"title": "Probes", "context": CONTEXT}
    return render_markdown(rows, **(arguments | changes))  # type: ignore[arg-type]


def parsed(source: str) -> list[Any]:
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    out = []
    for token in reader.parse(source):
        out += [token, *(token.children or [])]
    return out


def test_sentences_table_and_context() -> None:
    rows = sweep(layers=3)
    rows[1]["status"] = "iteration_limit"
    text = render(rows)
    assert text.startswith("## Probes\n")
    assert "1 of 6 fits did not converge: `iteration limit` (1)." in text
    assert "### `sentiment`" in text
    assert "**0." in text
    lines = text.splitlines()
    start = lines.index("| site | `logistic` | `attention, 8 heads` |")
    assert lines[start + 1] == "| --- | --- | --- |"
    assert lines[start + 2].startswith("| `embed` (layer 0) | 0.")
    assert lines[start + 2].endswith("not converged |")
    assert lines[start + 5] == ""
    assert "- `command`: `actstore probe`" in lines
    assert text == render(rows)


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(
        st.sampled_from(
            ["<img src=x>", "[a](http://b)", "![a](b)", "`` ` ``", "a|b", "@someone #1", "\n# x"]
        ),
        st.text(st.characters(exclude_categories=()), min_size=1, max_size=30),
    )
)
def test_hostile_names_are_code_and_nothing_else(text: str) -> None:
    rows = [
        row(task=f"a{text}", site=f"{layer}{text}~", layer=layer, probe=f"p{text}", status=text)
        for layer in range(2)
    ]
    source = render(rows, title=f"t{text}!", context={f"k{text}": f"v{text}"}, notes=[f"n{text}!"])
    tokens = parsed(source)
    assert {token.type for token in tokens} <= HARMLESS
    code = {token.content for token in tokens if token.type == "code_inline"}
    for name in ("a", "k", "v"):
        assert visible(f"{name}{text}") in code
    assert len([token for token in tokens if token.type == "tr_open"]) == 3


def test_plain_titles_stay_plain_and_others_are_quoted() -> None:
    assert render(sweep(), title="Probes of layer 3, run 2").startswith("## Probes of layer 3, run")
    for title in ("a_b_c", "http://x.org", "see www.example.org", "<b>", "#1", "@me", "a\nb"):
        assert render(sweep(), title=title).startswith("## `")


def test_long_tables_and_many_tasks_are_cut_and_counted() -> None:
    text = render(sweep(layers=MAX_TABLE_ROWS + 7))
    assert text.count("| `resid_post.") == MAX_TABLE_ROWS - 1
    assert "7 more sites are in `results.parquet`." in text
    many = render([row(task=f"t{i}") for i in range(30)], results_file="x.parquet")
    assert "6 more tasks are in `x.parquet`." in many


def test_missing_values_and_no_rows() -> None:
    text = render([{"task": "t", "site": "embed", "probe": "logistic"}], context={})
    assert "No fit of this task has a result." in text
    assert "| `embed` | – not converged |" in text
    with pytest.raises(InputError, match="no result rows"):
        render([])
