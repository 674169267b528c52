"""Rows for the tests of reports, and a parser that remembers what it saw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Any

Row = dict[str, Any]
VOID = {"meta", "link", "input", "br"}


def row(**changes: Any) -> Row:
    """One complete row of results.parquet."""
    accuracy = changes.get("accuracy", 0.9)
    complete: Row = {
        "task": "sentiment",
        "kind": "binary",
        "site": "resid_post.2",
        "layer": 3,
        "mask": "content",
        "pool": "mean",
        "probe": "logistic",
        "heads": None,
        "alpha": 0.01,
        "seed": 0,
        "n_train": 800,
        "n_test": 200,
        "accuracy": accuracy,
        "accuracy_low": None if accuracy is None else max(0.0, accuracy - 0.021),
        "accuracy_high": None if accuracy is None else min(1.0, accuracy + 0.019),
        "f1_macro": 0.88,
        "roc_auc": 0.95,
        "log_loss": 0.31,
        "ece": 0.02,
        "control_accuracy": 0.52,
        "selectivity": None if accuracy is None else accuracy - 0.52,
        "majority": 0.53,
        "entropy": None,
        "entropy_uniform": None,
        "status": "converged",
        "grad_norm": 2e-8,
        "iterations": 31,
        "seconds": 0.4,
    }
    return complete | changes


def site_of(layer: int) -> str:
    return "embed" if layer == 0 else f"resid_post.{layer - 1}"


def sweep(
    tasks: Iterable[str] = ("sentiment",),
    layers: int = 5,
    probes: Iterable[tuple[str, int | None]] = (("logistic", None), ("attention", 8)),
    **changes: Any,
) -> list[Row]:
    """A full grid with different values everywhere."""
    rows = []
    for t, task in enumerate(tasks):
        for layer in range(layers):
            for p, (probe, heads) in enumerate(probes):
                value = 0.6 + 0.3 * math.sin((layer + 1) / layers) + 0.017 * p - 0.013 * t
                rows.append(
                    row(
                        task=task,
                        site=site_of(layer),
                        layer=layer,
                        probe=probe,
                        heads=heads,
                        accuracy=value,
                        status="completed" if probe == "attention" else "converged",
                        **changes,
                    )
                )
    return rows


class Seen(HTMLParser):
    """Tags in order, attributes, and text outside style and script; checks the nesting."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(page)
        self.close()
        assert self.open == [], f"unclosed {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"stray </{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in self.raw:
            self.raw[inside].append(data)
            return
        self.texts.append(data)
        if "table" in self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def classes(self, name: str) -> int:
        """How many elements have this class."""
        return sum(a == "class" and name in value.split() for _, a, value in self.attributes)
