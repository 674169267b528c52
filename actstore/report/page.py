"""The report as one HTML page that needs no network, no server and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actstore.report.figures import sample
from actstore.report.rows import Fit, TaskResults, gather, read_fits
from actstore.report.section import task_section
from actstore.report.series import Looks, make_looks
from actstore.report.style import content_policy, script, style_sheet
from actstore.report.summary import Sentence, health, task_sentences
from actstore.report.tables import results_table
from actstore.report.text import count, escape

__all__ = ["MAX_ROWS", "MAX_TASKS", "render_report"]

MAX_ROWS = 500
MAX_TASKS = 24
"""Tasks with figures; every further task is in the results file only."""


def render_report(
    records: Sequence[Mapping[str, Any]],
    *,
    title: str,
    context: Mapping[str, str],
    level: float = 0.95,
    notes: Sequence[str] = (),
    results_file: str = "results.parquet",
) -> str:
    """One self-contained HTML page about probe results.

    Args:
        records: rows with the columns of results.parquet; unknown columns are ignored.
        title: heading of the page.
        context: shown in the last block: command, versions, store, model, in this order.
        level: coverage of the intervals in the rows.
        notes: further sentences for the first screen, such as what was quarantined.
        results_file: named as the place of the rows that do not fit in the page.

    Returns:
        The page; write it as UTF-8. All text is escaped, and a content policy with hashes
        forbids any script, style and connection but the page's own.

    Raises:
        InputError: no rows, a required column missing, or a value that is no number.
    """
    fits = read_fits(records)
    tasks = gather(fits)
    shown = tasks[:MAX_TASKS]
    looks = make_looks(one for task in shown for one in task.series)
    share = f"{100 * level:g} %"
    sections = "".join(task_section(task, at, looks, share) for at, task in enumerate(shown))
    body = (
        f'<main class="report"><h1>{escape(title)}</h1>'
        f"{_subtitle(fits, tasks, context)}"
        f"{_first_screen(fits, tasks, looks, notes, results_file)}"
        f"{_legend(looks)}{sections}{_results(tasks, len(fits), results_file)}{_context(context)}"
        "</main>"
    )
    style, code = style_sheet(len(looks.legend)), script()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(style, code)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{style}</style></head>\n<body>{body}<script>{code}</script></body></html>\n"
    )


# --- first screen ------------------------------------------------------------------------------


def _html(sentence: Sentence) -> str:
    out = []
    for part in sentence:
        if isinstance(part, str):
            out.append(escape(part))
        elif part.strong:
            out.append(f'<span class="big">{escape(part.text)}</span>')
        else:
            out.append(f"<bdi>{escape(part.text)}</bdi>")
    return "".join(out)


def _subtitle(fits: Sequence[Fit], tasks: Sequence[TaskResults], context: Mapping[str, str]) -> str:
    sites = len({fit.site for fit in fits})
    parts = [count(len(tasks), "task"), count(sites, "site"), count(len(fits), "fit")]
    line = escape(", ".join(parts))
    for key in ("model", "store"):
        if context.get(key):
            line += f" · {key} <bdi>{escape(context[key])}</bdi>"
    return f'<p class="sub">{line}</p>'


def _first_screen(
    fits: Sequence[Fit],
    tasks: Sequence[TaskResults],
    looks: Looks,
    notes: Sequence[str],
    results_file: str,
) -> str:
    items = []
    for at, task in enumerate(tasks[:MAX_TASKS]):
        best = task.best
        first, *rest = task_sentences(task, looks.names[best.series] if best else "")
        more = f'<p class="note">{" ".join(map(_html, rest))}</p>' if rest else ""
        items.append(
            f'<li><p class="task"><a href="#task-{at}"><bdi>{escape(task.name)}</bdi></a></p>'
            f"<p>{_html(first)}</p>{more}</li>"
        )
    sentences, well = health(fits, tasks)
    text = " ".join(map(_html, sentences))
    if not well:
        text = f"<strong>Check these fits.</strong> {text}"
    for note in notes:
        text += f" {escape(note)}"
    if len(tasks) > MAX_TASKS:
        text += (
            f" This page shows {MAX_TASKS} of {len(tasks):,} tasks; all of them are in "
            f"{escape(results_file)}."
        )
    kind = "" if well and not notes else ' class="warn"'
    return f'<p{kind}>{text}</p><ul class="best">{"".join(items)}</ul>'


def _legend(looks: Looks) -> str:
    """A switch for each look; the style sheet makes them work."""
    labels = []
    for name, style in looks.legend:
        at = style.index
        box = f'<input type="checkbox" class="x{at}" checked>' if len(looks.legend) > 1 else ""
        labels.append(f'<label class="l{at}">{box}{sample(style)}<bdi>{escape(name)}</bdi></label>')
    return f'<fieldset class="legend"><legend>Probes</legend>{"".join(labels)}</fieldset>'


# --- the rest ----------------------------------------------------------------------------------


def _selection(tasks: Sequence[TaskResults], room: int) -> list[Fit]:
    """At most `room` fits: the best of every task, an equal share for each as far as needed."""
    kept: list[Fit] = []
    by_size = sorted(tasks, key=lambda task: len(task.fits))
    share: dict[str, int] = {}
    for left, task in zip(range(len(tasks), 0, -1), by_size, strict=True):
        share[task.name] = min(len(task.fits), room // left)
        room -= share[task.name]
    for task in tasks:
        ranked = sorted(
            range(len(task.fits)),
            key=lambda row: -(task.fits[row].number("accuracy") or 0),
        )
        kept += [task.fits[row] for row in sorted(ranked[: share[task.name]])]
    return kept


def _results(tasks: Sequence[TaskResults], total: int, results_file: str) -> str:
    kept = _selection(tasks, MAX_ROWS)
    constant, table = results_table(kept)
    same = ", ".join(f"{name} <bdi>{escape(value)}</bdi>" for name, value in constant)
    note = f"The same in all rows: {same}." if same else ""
    if total > len(kept):
        note = (
            f"<strong>{total - len(kept):,} of {total:,} rows are left out</strong>: the most "
            f"accurate of each task are shown, all are in {escape(results_file)}. {note}"
        )
    search = (
        '<div class="filter" hidden><label>Filter <input type="search" autocomplete="off" '
        f'spellcheck="false"></label><span role="status">{len(kept)} rows</span></div>'
        if len(kept) > 5
        else ""
    )
    return (
        f'<section class="results"><h2>All results</h2><p class="note">{note}</p>'
        f"{search}{table}</section>"
    )


def _context(context: Mapping[str, str]) -> str:
    if not context:
        return ""
    pairs = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in context.items()
    )
    return f'<details class="how"><summary>How this was made</summary><dl>{pairs}</dl></details>'
