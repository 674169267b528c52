"""What the results say, in sentences; shared by the page and the Markdown.

A sentence is a list of parts: `str` is our own wording, `Name` is text from the results and is
escaped by whoever writes the sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from actstore.report.rows import FINISHED, Fit, Point, TaskResults
from actstore.report.text import count, decimal, interval, words

__all__ = ["Name", "Sentence", "health", "task_sentences"]


@dataclass(frozen=True)
class Name:
    """Hostile text inside a sentence; `strong` marks the number that it is all about."""

    text: str
    strong: bool = False


Sentence = list[str | Name]


def place(point: Point) -> Sentence:
    """`layer 4 (resid_post.3)` or the site's name."""
    if point.layer is None:
        return [Name(point.site)]
    return [f"layer {point.layer} (", Name(point.site), ")"]


def task_sentences(task: TaskResults, name: str) -> list[Sentence]:
    """The result of a task; `name` is the best point's series as the report calls it."""
    best = task.best
    if best is None:
        return [["No fit of this task has a result."]]
    accuracy = Name(interval(best.accuracy, best.low, best.high), strong=True)
    first: Sentence = ["Best: ", Name(name), " at ", *place(best), ", accuracy ", accuracy]
    if task.n_test:
        items = " or ".join(f"{n:,}" for n in task.n_test[:3])
        first.append(f" on {items} test {'item' if task.n_test == (1,) else 'items'}")
    first.append(".")
    if best.unfinished:
        first.append(" This fit did not converge.")
    second: Sentence = [_compared(task, best)]
    return [first, second, *_chosen(task)]


def _compared(task: TaskResults, best: Point) -> str:
    parts = []
    if best.control is None:
        parts.append("There is no control task, so selectivity is not known.")
    else:
        parts.append(
            f"The control task reaches {decimal(best.control)}, so selectivity is "
            f"{decimal(best.selectivity)}."
        )
    if task.majority is not None:
        parts.append(f"Always the most frequent class: {decimal(task.majority)}.")
        if best.low is not None and best.low <= task.majority:
            parts.append("That is no clear gain over this baseline.")
    return " ".join(parts)


def _chosen(task: TaskResults) -> list[Sentence]:
    scored = sum(point.accuracy is not None for point in task.points.values())
    if scored == 1:
        return []
    if task.chosen_by_cv:
        return [[f"Chosen from {scored:,} by cross-validation on the training items."]]
    optimism = "so expect slightly less on new text"
    return [[f"The highest of {scored:,} on the test items themselves, {optimism}."]]


def health(fits: Sequence[Fit], tasks: Sequence[TaskResults]) -> tuple[list[Sentence], bool]:
    """(what did not converge or is missing, whether everything is well)."""
    total = len(fits)
    empty = sum(fit.number("accuracy") is None for fit in fits)
    states = Counter(fit.status for fit in fits if fit.status not in FINISHED)
    folds = int(sum(fit.number("cv_unconverged") or 0 for fit in fits))
    gaps = sum(task.gaps for task in tasks)
    out: list[Sentence] = []
    if states:
        bad = sum(states.values())
        sentence: Sentence = [f"{bad:,} of {count(total, 'fit')} did not converge: "]
        for at, (state, number) in enumerate(states.most_common(4)):
            sentence += [", " if at else "", Name(words(state)), f" ({number:,})"]
        sentence.append(", and others." if len(states) > 4 else ".")
        out.append(sentence)
    else:
        every = "The only fit" if total == 1 else f"All {total:,} fits"
        out.append([f"{every} converged."])
    if empty:
        out.append([f"{count(empty, 'fit')} {'has' if empty == 1 else 'have'} no result."])
    if folds:
        out.append([f"In cross-validation {count(folds, 'fit')} did not converge."])
    if gaps:
        pairs = count(gaps, "pair")
        out.append([f"{pairs} of site and probe {'was' if gaps == 1 else 'were'} not fitted."])
    dropped = sum(int(max(fit.number("dropped") or 0 for fit in task.fits)) for task in tasks)
    if dropped:
        verb = "has" if dropped == 1 else "have"
        out.append([f"{count(dropped, 'item')} {verb} no row in their mask and are left out."])
    return out, not (states or empty or folds)
