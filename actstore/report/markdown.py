"""The same report in Markdown, short enough for an issue or a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actstore.report.rows import TaskResults, gather, read_fits
from actstore.report.series import make_looks
from actstore.report.summary import Name, Sentence, health, task_sentences
from actstore.report.tables import Names
from actstore.report.text import MISSING, code, interval, visible

__all__ = ["MAX_TABLE_ROWS", "render_markdown"]

MAX_TABLE_ROWS = 40
MAX_TASKS = 24


def render_markdown(
    records: Sequence[Mapping[str, Any]],
    *,
    title: str,
    context: Mapping[str, str],
    notes: Sequence[str] = (),
    results_file: str = "results.parquet",
) -> str:
    """Results as GitHub Markdown: sentences, a table per task, and the context.

    Arguments and errors as for `render_report`. All text from the results stands in code
    spans, where it is neither markup nor a mention.
    """
    fits = read_fits(records)
    tasks = gather(fits)
    names = make_looks(one for task in tasks for one in task.series).names
    out = [f"## {code(title)}" if _active(title) else f"## {title}", ""]
    sentences, _ = health(fits, tasks)
    extra = [code(note) if _active(note) else note for note in notes]
    out += [" ".join([*map(_line, sentences), *extra]), ""]
    for task in tasks[:MAX_TASKS]:
        best = task.best
        own = task_sentences(task, names[best.series] if best else "")
        out += [f"### {code(task.name)}", "", " ".join(map(_line, own)), ""]
        out += [*_table(task, names, results_file), ""]
    if len(tasks) > MAX_TASKS:
        left = len(tasks) - MAX_TASKS
        out += [f"{left:,} more tasks are in {code(results_file)}.", ""]
    out += [f"- {code(key)}: {code(value)}" for key, value in context.items()]
    return "\n".join(out).rstrip() + "\n"


def _active(text: str) -> bool:
    """Whether Markdown could read anything but words in `text`."""
    plain = all(one.isalnum() or one in " ,.:-()/" for one in text)
    return (
        not plain or visible(text) != text or any(link in text.lower() for link in ("://", "www."))
    )


def _line(sentence: Sentence) -> str:
    parts = []
    for part in sentence:
        if isinstance(part, Name):
            parts.append(f"**{part.text}**" if part.strong else code(part.text))
        else:
            parts.append(part)
    return "".join(parts)


def _table(task: TaskResults, names: Names, results_file: str) -> list[str]:
    """Accuracy with interval, a row per site and a column per series."""
    head = ["site", *(code(names[series], cell=True) for series in task.series)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for site in task.sites[:MAX_TABLE_ROWS]:
        layer = task.layers[site]
        cells = [code(site, cell=True) + ("" if layer is None else f" (layer {layer})")]
        for series in task.series:
            point = task.points.get((series, site))
            value = interval(point.accuracy, point.low, point.high) if point else MISSING
            cells.append(value + (" not converged" if point and point.unfinished else ""))
        lines.append(f"| {' | '.join(cells)} |")
    left = len(task.sites) - MAX_TABLE_ROWS
    if left > 0:
        lines += ["", f"{left:,} more sites are in {code(results_file)}."]
    return lines
