"""Merge what the user gave in several places and validate it once.

Every value arrives as a `Given`, which knows where it was written. `build_run` merges the
sources, lets pydantic validate the result against the run's dataclass, and reports every fault at
once, each at the place of its cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from actstore.config import COMMANDS, Run, command_of
from actstore.errors import InputError
from actstore.option import OptionSpec, did_you_mean, option_specs

__all__ = ["Fault", "Given", "build_run", "from_text", "resolve_scalar"]

RunT = TypeVar("RunT", bound=Run)
Order = tuple[int, int, int]

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?[0-9]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_SWITCH = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_SHOWN = 60


@dataclass(frozen=True)
class Given:
    """One value as somebody wrote it.

    Attributes:
        value: None, bool, int, float, str, list or dict.
        label: what a message about the value begins with: `--folds` or `run.yaml:3:8: folds`.
        raw: a scalar as it was written.
        order: where a message about it is sorted: (source, line, column).
        items: the same for each item of a list.
        key_label, key_order: the same for the key, where there is one: `run.yaml:3:1`.
    """

    value: Any
    label: str
    raw: str
    order: Order
    items: tuple[Given, ...] = ()
    key_label: str = ""
    key_order: Order = (0, 0, 0)


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong, in one line."""

    order: Order
    text: str


def resolve_scalar(text: str) -> bool | int | float | str | None:
    """The value of an unquoted word by the core schema of YAML 1.2: `no` and `12:30:45` are
    texts, `0123` is 123 and `1e-3` is a number."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    try:
        if _INT.fullmatch(text):
            return int(text)
        if _HEX.fullmatch(text):
            return int(text, 0)
    except ValueError:  # thousands of digits
        return text
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def from_text(spec: OptionSpec, texts: Sequence[str], label: str, order: Order) -> Given:
    """What was typed for an option, once or, if it is a list, several times.

    A text that cannot be read as the option's kind stays a text, so that validation refuses it.
    """
    if not spec.many or texts == [spec.about.unset]:
        return Given(_typed(texts[-1], spec.kind), label, texts[-1], order)
    pieces = list(texts)
    if spec.about.commas:
        pieces = [piece.strip() for text in texts if text for piece in text.split(",")]
    items = tuple(Given(_typed(piece, spec.kind), label, piece, order) for piece in pieces)
    return Given([item.value for item in items], label, ",".join(texts), order, items)


def _typed(text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        return _SWITCH.get(text.lower(), text)
    value = resolve_scalar(text)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text


def build_run(
    run_class: type[RunT],
    sources: Iterable[Mapping[str, Given]],
    faults: Iterable[Fault] = (),
    run_file: str | None = None,
) -> RunT:
    """Merge `sources`, the weakest first, and validate.

    Of two options that exclude each other, the one of the stronger source wins; both in one
    source is a fault. `faults` are those found while reading; `run_file` names the file that a
    missing key is missing from.

    Raises:
        InputError: something is wrong. Its message is the first fault and its notes
            (`__notes__`) are the others, in the order of their places.
    """
    specs = {spec.name: spec for spec in option_specs(run_class)}
    merged: dict[str, Given] = {}
    found = list(faults)
    for source in sources:
        found += _merge(merged, _unset(source, specs), specs)
    values = {name: given.value for name, given in merged.items()}
    run: RunT | None = None
    try:
        run = _adapter(command_of(run_class)).validate_python(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            found.append(_fault(detail, merged, specs, run_file))
    if found or run is None:
        first, *others = sorted(set(found))
        failure = InputError(first.text)
        for fault in others:
            failure.add_note(fault.text)
        raise failure
    return run


@cache
def _adapter(command: str) -> TypeAdapter[Any]:
    return TypeAdapter(COMMANDS[command])


def _merge(
    merged: dict[str, Given], source: Mapping[str, Given], specs: Mapping[str, OptionSpec]
) -> list[Fault]:
    faults = []
    for name, given in source.items():
        rival = specs[name].about.excludes if name in specs else None
        if rival is not None and given.value is not None:
            other = source.get(rival)
            if other is None or other.value is None:
                merged.pop(rival, None)
            elif other.order < given.order:
                faults.append(Fault(given.order, f"{given.label}: not together with {other.label}"))
        merged[name] = given
    return faults


def _unset(source: Mapping[str, Given], specs: Mapping[str, OptionSpec]) -> dict[str, Given]:
    """The source with None in place of the word that stands for it (`all`)."""
    words = {name: spec.about.unset for name, spec in specs.items() if spec.about.unset}
    return {
        name: replace(given, value=None) if given.value == words.get(name, ...) else given
        for name, given in source.items()
    }


def _fault(
    detail: ErrorDetails,
    merged: Mapping[str, Given],
    specs: Mapping[str, OptionSpec],
    run_file: str | None,
) -> Fault:
    """Turn one of pydantic's errors into our words, at the place of its cause."""
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        return Fault((9, list(specs).index(name), 0), _missing(specs[name], run_file))
    given = merged[name]
    if detail["type"] == "unexpected_keyword_argument":
        hint = did_you_mean(name, specs) or "; --help lists the known ones"
        return Fault(given.key_order, f"{given.key_label}: unknown key {name!r}{hint}")
    for step in detail["loc"][1:]:
        if isinstance(step, int) and step < len(given.items):
            given = given.items[step]
    return Fault(given.order, f"{given.label}: {_words(detail, given, specs[name])}")


def _missing(spec: OptionSpec, run_file: str | None) -> str:
    if run_file is not None:
        return f"{run_file}: key {spec.name!r} is missing: add it, or give {spec.flag}"
    return f"{spec.flag} is required. {spec.about.help}"


def _words(detail: ErrorDetails, given: Given, spec: OptionSpec) -> str:
    kind, got = detail["type"], _got(given)
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "tuple_type":
        example = f", such as [{given.raw}]" if given.raw else ""
        return f"expected a list{example}, got {got}"
    if kind == "literal_error":
        if given.value in spec.about.later:
            return f"{given.value!r} is not available yet; use {' or '.join(spec.choices)}"
        hint = did_you_mean(given.value, spec.choices) if isinstance(given.value, str) else ""
        return f"expected one of {', '.join(spec.choices)}, got {got}{hint}"
    if kind == "finite_number":
        return f"expected a finite number, got {got}"
    if kind in ("greater_than", "greater_than_equal", "less_than"):
        return f"must be {spec.limits}, got {got}"
    if kind.endswith("_type"):
        alternative = f" or {spec.about.unset}" if spec.about.unset and not spec.many else ""
        return f"expected {_KINDS[spec.kind]}{alternative}, got {got}{_quotes(given, spec)}"
    return detail["msg"]


def _got(given: Given) -> str:
    match given.value:
        case None:
            return "nothing"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case str(text) if len(text) > _SHOWN:
            return repr(text[: _SHOWN - 3]) + "..."
        case str(text):
            return repr(text)
    return given.raw[:_SHOWN]


def _quotes(given: Given, spec: OptionSpec) -> str:
    """Quotes are the usual cause of a wrong kind in a run file."""
    if spec.kind is str and isinstance(given.value, bool | int | float):
        return "; put it in quotes"
    if isinstance(given.value, str) and spec.kind is not str and given.key_label:
        kind = type(resolve_scalar(given.value))
        if kind is spec.kind or (kind is int and spec.kind is float):
            return "; remove the quotes"
    return ""
