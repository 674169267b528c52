"""Run files: YAML 1.2 without its traps, and the place of every key and value.

Differences from plain PyYAML: words mean what YAML 1.2 says (`no` is a text, `1e-3` a number),
a key given twice is an error, and anchors, aliases and tags are refused.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

from actstore.config import Run, command_of
from actstore.errors import InputError
from actstore.option import panels
from actstore.request import Fault, Given, build_run, resolve_scalar

__all__ = ["dump_run", "load_run", "read_run_file"]

RunT = TypeVar("RunT", bound=Run)

_SIZE_LIMIT = 1 << 20
_PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][A-Za-z0-9_./-]*")


def load_run(run_class: type[RunT], path: str | os.PathLike[str]) -> RunT:
    """Read and validate a run file, from Python.

    Raises:
        InputError: the file cannot be read or something in it is wrong; the first fault is the
            message, the others are its notes.
    """
    values, faults = read_run_file(os.fspath(path))
    return build_run(run_class, [values], faults, run_file=os.fspath(path))


def read_run_file(path: str) -> tuple[dict[str, Given], list[Fault]]:
    """The keys of a run file with their places, and the faults that do not hide others
    (duplicate keys, keys that are no text).

    Raises:
        InputError: the file is absent, no text, or no YAML mapping.
    """
    text = _read_text(path)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: not a valid run file: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise InputError(
            f"{path}:{line}:{column}: the character {error.character:#04x} cannot stand in YAML"
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}: not a valid run file: nested too deeply") from error
    if node is None:
        return {}, []
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{_place(path, node)}: expected a mapping, such as model: NAME")
    return _mapping(path, node)


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"--config: cannot read run file {path!r}: {reason}") from error
    if len(data) > _SIZE_LIMIT:
        raise InputError(f"--config: {path!r} is larger than 1 MB: this is not a run file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text") from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Composes nodes; leaves the meaning of words to `resolve_scalar`."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (as declared by PyYAML)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"alias *{event.anchor}")
        if getattr(event, "anchor", None) is not None:
            self._refuse(event, f"anchor &{event.anchor}")
        if getattr(event, "tag", None) is not None:
            self._refuse(event, f"tag {event.tag!r}")
        return super().compose_node(parent, index)

    def _refuse(self, event: Any, what: str) -> None:
        raise yaml.MarkedYAMLError(
            problem=f"{what} is not allowed here; write the value out",
            problem_mark=event.start_mark,
        )


def _place(path: str, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _order(node: yaml.Node) -> tuple[int, int, int]:
    return (0, node.start_mark.line + 1, node.start_mark.column + 1)


def _mapping(path: str, node: yaml.MappingNode) -> tuple[dict[str, Given], list[Fault]]:
    values: dict[str, Given] = {}
    lines: dict[str, int] = {}
    faults = []
    for key_node, value_node in node.value:
        place, order = _place(path, key_node), _order(key_node)
        key = _value(key_node)
        if not isinstance(key, str):
            faults.append(Fault(order, f"{place}: a key must be a word"))
        elif key in values:
            text = f"{place}: key {key!r} is given twice, first at line {lines[key]}"
            faults.append(Fault(order, text))
        else:
            lines[key] = order[1]
            values[key] = _given(path, key_node, value_node)
    return values, faults


def _given(path: str, key_node: yaml.Node, node: yaml.Node) -> Given:
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    return Given(
        value=_value(node),
        label=f"{_place(path, node)}: {key_node.value}",
        raw=node.value if isinstance(node, yaml.ScalarNode) else "",
        order=_order(node),
        items=tuple(_given(path, key_node, item) for item in items),
        key_label=_place(path, key_node),
        key_order=_order(key_node),
    )


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else resolve_scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    return {}  # no key takes a mapping: its content is not looked at


# --- writing -----------------------------------------------------------------------------------


def dump_run(run: Run) -> str:
    """The run as a commented run file; reading it gives an equal run."""
    return "\n".join([f"# actstore {command_of(type(run))} --config FILE", *_lines(run), ""])


def _lines(run: Run) -> Iterator[str]:
    for panel, specs in panels(type(run)).items():
        yield f"\n# --- {panel} ".ljust(80, "-")
        for spec in specs:
            yield from textwrap.wrap(
                spec.describe(), 92, initial_indent="# ", subsequent_indent="#   "
            )
            value = getattr(run, spec.name)
            word = spec.about.unset if value is None else None
            yield f"{spec.name}: {word or _written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_written(item) for item in value)}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and resolve_scalar(value) == value:
        return value
    return '"' + "".join(_escaped(char) for char in value) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    # What str calls printable is a subset of what YAML allows, but for the byte order mark.
    return char if char.isprintable() and char != "\ufeff" else f"\\U{ord(char):08x}"
