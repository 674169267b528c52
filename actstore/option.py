"""How a dataclass field becomes an option: limits on its value, words about it, and its shape.

`Rule` and `Items` go into annotations, `About` into the field's metadata; `option_specs` reads
them back. pydantic asks `Rule` and `Items` for their schema when it validates a run; nothing here
imports pydantic, so that `--help` stays fast.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["About", "Items", "OptionSpec", "Rule", "did_you_mean", "option_specs", "panels"]

Schema = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """Limits on one number or text. Never converts: a quoted "5" is no number.

    `check` returns what is wrong with a value, or None.
    """

    ge: float | None = None
    gt: float | None = None
    lt: float | None = None
    check: Callable[[Any], str | None] | None = None

    def describe(self) -> str:
        """The limits in words, for help: `at least 1`."""
        words = (("at least", self.ge), ("above", self.gt), ("below", self.lt))
        return ", ".join(f"{word} {limit:g}" for word, limit in words if limit is not None)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Schema]) -> Schema:
        limits = {"ge": self.ge, "gt": self.gt, "lt": self.lt}
        schema = handler(source) | {name: v for name, v in limits.items() if v is not None}
        return _checked(schema | {"strict": True}, self.check)


@dataclass(frozen=True)
class Items:
    """Limits on a list as a whole."""

    at_least: int = 1
    distinct: bool = True
    alone: str | None = None

    def complaint(self, values: tuple[Any, ...]) -> str | None:
        """What is wrong with the values, or None."""
        if len(values) < self.at_least:
            return "needs at least one value"
        for place, value in enumerate(values):
            if self.distinct and value in values[:place]:
                return f"{value!r} is listed twice"
        if self.alone in values and len(values) > 1:
            return f"{self.alone!r} cannot be combined with other values"
        return None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Schema]) -> Schema:
        return _checked(handler(source), self.complaint)


def _checked(schema: Schema, check: Callable[[Any], str | None] | None) -> Schema:
    if check is None:
        return schema

    def after(value: Any) -> Any:
        complaint = check(value)
        if complaint is not None:
            raise ValueError(complaint)
        return value

    function = {"type": "no-info", "function": after}
    return {"type": "function-after", "function": function, "schema": schema}


@dataclass(frozen=True)
class About:
    """Help and surface syntax of one option.

    Attributes:
        help: one or two sentences.
        panel: heading under which help shows the option.
        metavar: what stands for the value in help, where it is not a choice.
        unset: word that, as a value, means None (`--workers all`).
        excludes: option that cannot be given together with this one.
        later: known choices that this version does not have yet.
        positional: given by position, not as `--name`.
        commas: whether a text is split at commas into the items of a list.
        path: what shell completion offers, "file" or "dir".
    """

    help: str
    panel: str
    metavar: str | None = None
    unset: str | None = None
    excludes: str | None = None
    later: tuple[str, ...] = ()
    positional: bool = False
    commas: bool = True
    path: str | None = None


@dataclass(frozen=True)
class OptionSpec:
    """One option as the command line and run files see it.

    `kind` is the type of one value (bool, int, float or str); `many` says that the option takes
    a list of them, `optional` that None is a value. `default` is None too for a required option.
    """

    name: str
    kind: type
    many: bool
    optional: bool
    required: bool
    default: Any
    choices: tuple[str, ...]
    limits: str
    about: About

    @property
    def flag(self) -> str:
        """As typed: `--text-column`, or the metavar of a positional one."""
        if self.about.positional:
            return self.about.metavar or self.name.upper()
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """What stands for the value in help."""
        if self.about.metavar:
            return self.about.metavar
        return "NAME,..." if self.many else "NAME"

    def describe(self) -> str:
        """The help text with choices, bounds and default."""
        notes = [text for text in (", ".join(self.choices), self.limits) if text]
        if self.required:
            notes.append("required")
        elif self.default is None:
            notes += [f"default: {self.about.unset}"] if self.about.unset else []
        elif self.kind is not bool:
            values = self.default if self.many else (self.default,)
            shown = ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
            notes.append(f"default: {shown}" if shown else "default: none")
        return self.about.help + (f" [{'; '.join(notes)}]" if notes else "")


def option_specs(run_class: type) -> tuple[OptionSpec, ...]:
    """The options of a run class, in the order of its fields."""
    hints = get_type_hints(run_class, include_extras=True)
    specs = []
    for item in fields(run_class):
        hint, optional = _strip_optional(hints[item.name])
        many = get_origin(hint) is tuple
        hint, rules = _strip_annotated(get_args(hint)[0] if many else hint)
        required = item.default is MISSING
        specs.append(
            OptionSpec(
                name=item.name,
                kind=str if get_origin(hint) is Literal else hint,
                many=many,
                optional=optional,
                required=required,
                default=None if required else item.default,
                choices=tuple(get_args(hint)) if get_origin(hint) is Literal else (),
                limits=", ".join(filter(None, (rule.describe() for rule in rules))),
                about=item.metadata["about"],
            )
        )
    return tuple(specs)


def panels(run_class: type) -> dict[str, list[OptionSpec]]:
    """The options under their headings, both in the order in which they first appear."""
    grouped: dict[str, list[OptionSpec]] = {}
    for spec in option_specs(run_class):
        grouped.setdefault(spec.about.panel, []).append(spec)
    return grouped


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arm for arm in get_args(hint) if arm is not type(None))
        optional = True
    # The annotation of a list as a whole says nothing here; that of a scalar is read later.
    if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) is tuple:
        hint = get_args(hint)[0]
    return hint, optional


def _strip_annotated(hint: Any) -> tuple[Any, list[Rule]]:
    if get_origin(hint) is not Annotated:
        return hint, []
    return get_args(hint)[0], [note for note in get_args(hint)[1:] if isinstance(note, Rule)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word nearest to `word`, or nothing."""
    from difflib import get_close_matches  # only when something was mistyped

    nearest = get_close_matches(word, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
