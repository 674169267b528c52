"""Printing for people: aligned tables and facts on stdout, within the terminal's width."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["print_facts", "print_json", "print_table"]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """`name  value` lines with the values aligned."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with numbers to the right. On a terminal that is too narrow, or in a pipe, nothing
    is cut: cells are then separated by tabs."""
    columns = list(zip(headers, *rows, strict=True)) if rows else [(h,) for h in headers]
    widths = [max(len(cell) for cell in column) for column in columns]
    fits = sum(widths) + 2 * len(widths) <= shutil.get_terminal_size((100, 24)).columns
    if not sys.stdout.isatty() and not fits:
        for line in (headers, *rows):
            print("\t".join(line))
        return
    right = [all(_numeric(cell) for cell in column[1:]) for column in columns]
    for number, line in enumerate((headers, *rows)):
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("-", "+", "[")
