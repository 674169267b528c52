"""The whole page: policy, escaping, completeness, size, and what a reader is told."""

from __future__ import annotations

import base64
import hashlib
import html
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_samples import Row, Seen, row, site_of, sweep

from actstore.errors import InputError
from actstore.report import render_report
from actstore.report.colours import DARK, LIGHT, STEPS, shades
from actstore.report.figures import make_scale
from actstore.report.series import NEUTRAL
from actstore.report.style import script, style_sheet
from actstore.report.text import visible

CONTEXT = {"command": "actstore probe --store acts", "model": "some/model", "store": "acts"}
NUMBER = re.compile(r"\u2212?\d\.\d{3}\b")


def render(rows: list[Row], **changes: object) -> str:
    arguments: dict[str, object] = {"title": "Probes", "context": CONTEXT}
    return render_report(rows, **(arguments | changes))  # type: ignore[arg-type]


def numbers_of(table: list[list[str]]) -> set[str]:
    return {number for line in table for cell in line for number in NUMBER.findall(cell)}


# --- policy ------------------------------------------------------------------------------------


def test_policy_names_exactly_the_bytes_of_the_one_style_and_script() -> None:
    page = render(sweep())
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for element in ("style", "script"):
        start = page.index(f"<{element}>") + len(element) + 2
        body = page[start : page.index(f"</{element}>", start)]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert rules[f"{element}-src"] == f"'sha256-{digest}'"
        assert page.count(f"<{element}") == 1
        assert page.index("Content-Security-Policy") < page.index(f"<{element}>")
    # A browser reads CRLF as LF before it computes the hash.
    assert "\r" not in page


def test_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = render(sweep(tasks=("a", "b")))
    for tag, name, value in Seen(page).attributes:
        assert name != "style"
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action", "formaction")
        if name == "href":
            assert value.startswith("#") or value == "data:,", (tag, value)
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import|expression|https?:", style)
    assert not re.search(r"innerHTML|eval|fetch|XMLHttp|import|https?:|document\.write", script())
    assert not re.search(r"https?://", page)


def test_script_is_small_and_page_is_whole_without_it() -> None:
    assert len(script()) < 3500
    page = render(sweep())
    seen = Seen(page.replace(script(), ""))
    assert seen.classes("heat") == 1
    assert seen.classes("line") >= 4
    assert len([value for _, name, value in seen.attributes if value == "sortable"]) == 1
    # Controls that need the script are hidden until it runs.
    assert '<div class="filter" hidden>' in page
    assert "<button" not in page


# --- hostile text ------------------------------------------------------------------------------

NASTY = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onfocus='x",
    "&lt;b&gt; &amp; &#0;",
    "]]><!--",
    "\u202e\u2066 \ud800\x00\x1b[31m\r\n",
    "{{7*7}} ${x}",
]
hostile = st.one_of(
    st.sampled_from(NASTY), st.text(st.characters(exclude_categories=()), min_size=1, max_size=40)
)


def page_about(text: str) -> str:
    """A page with the same grid whatever the text is; the text is everywhere."""
    rows = []
    for task in "ab":
        for layer in range(3):
            for probe in ("p", "q"):
                one = row(
                    task=f"{task}{text}",
                    site=f"{layer}{text}~",
                    layer=layer,
                    probe=f"{probe}{text}",
                    mask=f"m{text}",
                    pool=f"o{text}",
                    status=f"s{text}",
                    kind=f"k{text}",
                    accuracy=0.6 + layer / 10,
                )
                rows.append(one | {"unknown": text})
    return render(
        rows,
        title=f"t{text}",
        context={f"k{text}": f"v{text}", "model": text, "store": text},
        notes=[f"n{text}"],
        results_file=f"f{text}",
    )


PLAIN = Seen(page_about("plain"))


@settings(deadline=None, max_examples=60)
@given(hostile)
@example("\n".join(NASTY))
def test_hostile_text_changes_the_text_and_never_the_markup(text: str) -> None:
    page = page_about(text)
    page.encode("utf-8")
    assert not set(page) & set("\r\x00\x1b\u202e\u2066")
    seen = Seen(page)
    assert seen.tags == PLAIN.tags
    assert "".join(seen.raw["style"]) == "".join(PLAIN.raw["style"])
    assert "".join(seen.raw["script"]) == script()
    for expected in (f"a{text}", f"b{text}", f"t{text}", f"n{text}", f"k{text}", f"v{text}"):
        assert visible(expected) in seen.text
    # Every attribute that holds hostile text is one that only holds text.
    holders = {name for _, name, value in seen.attributes if visible(text) in value}
    if len(text) > 12:
        assert holders <= {"aria-label", "data-tip"}


# --- completeness ------------------------------------------------------------------------------


def test_every_number_of_a_chart_stands_in_a_table() -> None:
    rows = sweep(layers=6, probes=(("logistic", None), ("mlp", None), ("attention", 8)))
    seen = Seen(render(rows))
    tips = " ".join(value for _, name, value in seen.attributes if name == "data-tip")
    drawn = set(NUMBER.findall(tips))
    assert len(drawn) > 30
    (behind,) = [table for table in seen.tables if "control" in table[0] and "notes" in table[0]]
    assert drawn <= numbers_of(behind)
    (heat,) = [table for table in seen.tables if table[0][0] == "layer"]
    assert numbers_of(heat) <= numbers_of(behind)
    assert len(heat) == 7
    assert all(len(line) == 4 for line in heat)
    results = seen.tables[-1]
    assert len(results) == 1 + len(rows)


def test_markers_agree_with_the_table() -> None:
    rows = sweep(layers=6, probes=(("logistic", None),), majority=0.53)
    page = render(rows)
    first = page[page.index('class="plot') : page.index("Selectivity by layer")]
    values = [v for r in rows for v in (r["accuracy_low"], r["accuracy_high"])]
    scale = make_scale([*values, 0.53, 0.5], most=1.0)
    marks = [float(y) for y in re.findall(r'<circle cx="[\d.]+%" cy="([\d.]+)"', first)]
    assert marks == pytest.approx([scale.pixel(r["accuracy"]) for r in rows], abs=0.01)
    (levels,) = re.findall(r'<text class="name"[^>]*>([^<]*)<', first)
    assert levels == "majority 0.530, chance 0.500"


def test_series_have_switches_and_the_rules_that_make_them_work() -> None:
    page = render(sweep(probes=(("logistic", None), ("mlp", None), ("attention", 1))))
    seen = Seen(page)
    for index in range(3):
        assert seen.classes(f"x{index}") == 1
        assert seen.classes(f"k{index}") >= 4
        assert f".report:has(.x{index}:not(:checked)) .k{index}" in page
    assert ".k3{" not in page
    assert Seen(render(sweep(probes=(("mlp", None),)))).classes("x0") == 0, "nothing to choose from"


def test_every_slot_and_shade_has_its_rules_in_both_themes() -> None:
    sheet = style_sheet(1)
    rules = dict(re.findall(r"\.c(\d)\{--c:var\(--\w+\);--d:([^}]+)\}", sheet))
    assert sorted(rules) == [str(slot) for slot in range(NEUTRAL + 1)]
    assert len(set(rules.values())) == NEUTRAL + 1, "two looks share a dash"
    dark = sheet[sheet.index("prefers-color-scheme:dark") :]
    for step in range(STEPS):
        assert f".h{step}{{background:var(--h{step});color:var(--t{step})}}" in sheet
        for theme, part in ((LIGHT, sheet), (DARK, dark)):
            shade, text = shades(theme)[step]
            assert f"--h{step}:{shade};--t{step}:{text};" in part
    defined = set(re.findall(r"--(\w+):", sheet))
    assert set(re.findall(r"var\(--(\w+)\)", sheet)) <= defined


def test_sites_that_are_no_hidden_states_have_an_axis_of_their_own() -> None:
    rows = sweep(layers=4, probes=(("logistic", None),))
    rows += [row(site=f"attn_out.{b}", layer=None, accuracy=0.7 + b / 50) for b in range(4)]
    rows.append(row(site="resid_post.3", layer=None, accuracy=0.777))
    page = render(rows)
    assert "Accuracy of attn_out, by block" in page
    assert "block 2 · attn_out.2" in page
    assert page.count('class="plot"') == 4
    assert "Sites outside the charts" in page
    assert page.count(">0.777<") >= 2


def test_two_sites_with_one_layer_number_do_not_share_a_place() -> None:
    rows = [
        row(site=f"{point}.{block}", layer=layer, accuracy=0.6 + layer / 100)
        for layer in (1, 2, 3)
        for point, block in (("resid_post", layer - 1), ("resid_pre", layer))
    ]
    page = render(rows)
    assert "Accuracy by layer" in page
    assert "Accuracy of resid_pre, by block" in page
    assert page.count('class="plot"') == 4


@pytest.mark.parametrize("probes", [[("logistic", None)], [("logistic", None), ("mlp", None)]])
def test_one_layer_is_a_table_of_ranges_and_no_empty_chart(
    probes: list[tuple[str, int | None]],
) -> None:
    page = render(sweep(layers=1, probes=probes))
    seen = Seen(page)
    assert seen.classes("plot") == 0
    assert seen.classes("heat") == 0
    assert seen.classes("range") == len(probes)
    assert seen.classes("whisker") == len(probes)


def test_pools_and_masks_that_exceed_the_hues_get_charts_of_their_own() -> None:
    rows = []
    for pool in ("mean", "last", "first"):
        rows += sweep(layers=3, probes=(("logistic", None), ("mlp", None)), pool=pool)
    page = render(rows)
    for pool in ("mean", "last", "first"):
        assert f"Accuracy by layer ({pool} pool)" in page
    assert Seen(page).classes("x2") == 0, "one switch per probe"


# --- what is missing ---------------------------------------------------------------------------


def test_zero_rows_is_one_line() -> None:
    with pytest.raises(InputError) as caught:
        render([])
    assert len(str(caught.value).splitlines()) == 1


def test_rows_with_nothing_but_names() -> None:
    bare: list[Row] = [
        {"task": "t", "site": site_of(layer), "probe": "logistic"} for layer in range(3)
    ]
    seen = Seen(render(bare, context={}))
    assert "No fit of this task has a result." in seen.text
    assert "3 fits have no result" in seen.text
    assert "no status (3)" in seen.text
    single: Row = {"task": "t", "site": "embed", "probe": "logistic", "accuracy": 0.7}
    text = Seen(render([single], context={})).text
    assert "accuracy 0.700." in text
    assert "no control task" in text


def test_gaps_failures_and_limits_are_said_on_the_first_screen() -> None:
    rows = sweep(layers=4)
    rows[0]["status"] = "iteration_limit"
    rows[2] |= {"accuracy": None, "status": "line_search"}
    rows[3]["cv_unconverged"] = 2
    rows[4]["dropped"] = 5
    rows.pop()
    text = Seen(render(rows, notes=["Unit 7 is quarantined."])).text
    assert "Check these fits." in text
    assert "2 of 7 fits did not converge: iteration limit (1), line search (1)." in text
    assert "1 fit has no result." in text
    assert "In cross-validation 2 fits did not converge." in text
    assert "1 pair of site and probe was not fitted." in text
    assert "5 items have no row in their mask and are left out." in text
    assert "Unit 7 is quarantined." in text
    assert text.index("Unit 7") < text.index("Best:")
    assert "All 10 fits converged." in Seen(render(sweep())).text


def test_unfinished_fits_are_named_in_words_where_their_number_stands() -> None:
    rows = sweep(layers=3, probes=(("logistic", None),))
    rows[-1]["status"] = "iteration_limit"
    page = render(rows)
    assert "This fit did not converge." in page
    assert "<small>not converged</small>" in page
    assert "<strong>iteration limit</strong>" in page
    assert page.count("not converged&#10;") + page.count('not converged"') == 2, "both tips"


def test_first_screen_has_interval_control_selectivity_and_majority() -> None:
    text = Seen(render([row(accuracy=0.9)])).text
    assert "Best: logistic at layer 3 (resid_post.2), accuracy 0.900 [0.879, 0.919]" in text
    assert "on 200 test items" in text
    assert "The control task reaches 0.520, so selectivity is 0.380." in text
    assert "Always the most frequent class: 0.530." in text
    assert "no clear gain" not in text
    assert "no clear gain" in Seen(render([row(accuracy=0.54)])).text


def test_how_the_best_was_chosen_is_said() -> None:
    rows = sweep(layers=3)
    assert "highest of 6 on the test items themselves" in Seen(render(rows)).text
    for one in rows:
        one["cv_accuracy"] = one["accuracy"] - 0.01
    assert "Chosen from 6 by cross-validation" in Seen(render(rows)).text


# --- the rest ----------------------------------------------------------------------------------


def test_context_title_and_level_are_shown_and_the_page_is_repeatable() -> None:
    rows = sweep()
    page = render(rows, level=0.9, title="Layers & probes")
    assert "<title>Layers &amp; probes</title>" in page
    assert "90 % bootstrap intervals" in page
    for key, value in CONTEXT.items():
        assert f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" in page
    assert page == render(rows, level=0.9, title="Layers & probes")
    assert "How this was made" not in render(rows, context={})


def test_structure_serves_readers_of_the_markup() -> None:
    seen = Seen(render(sweep(tasks=("a", "b"))))
    attributes = seen.attributes
    assert ("html", "lang", "en") in attributes
    assert [tag for tag, _ in seen.tags].count("h1") == 1
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, name, value in attributes if name == "href" and value[0] == "#"]
    assert set(targets) <= set(ids)
    for tag, names in seen.tags:
        if tag == "th":
            assert "scope" in names
        if "tabindex" in names:
            assert {"role", "aria-label"} <= set(names)
    charts = [v for tag, n, v in attributes if tag == "svg" and n == "aria-label"]
    assert len(charts) == 4
    assert all("highest 0." in text for text in charts)
