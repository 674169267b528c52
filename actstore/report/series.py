"""Series of a report and the looks they keep in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actstore.report.text import count, words

__all__ = ["NEUTRAL", "Looks", "Series", "Style", "make_looks"]

NEUTRAL = 5
"""The slot without a hue of its own, in the colour of secondary text."""

_ORDER = ("logistic", "ridge", "mean_difference", "mlp", "attention")


@dataclass(frozen=True)
class Series:
    """What one line of a chart stands for."""

    probe: str
    heads: int | None
    mask: str | None
    pool: str | None

    @property
    def name(self) -> str:
        """`logistic`, `attention, 8 heads`; plain text, to be escaped."""
        if self.heads is None or (self.probe != "attention" and self.heads == 1):
            return words(self.probe)
        return f"{words(self.probe)}, {count(self.heads, 'head')}"

    def order(self) -> tuple[int, str, int, str, str]:
        """Sort key: simple probes first."""
        place = _ORDER.index(self.probe) if self.probe in _ORDER else len(_ORDER)
        return place, self.probe, self.heads or 0, self.mask or "", self.pool or ""


@dataclass(frozen=True)
class Style:
    """`slot` picks colour, dash and marker; `index` is unique and names the legend's switch.

    Series of different `lane` share slots and are never drawn in the same chart.
    """

    slot: int
    lane: int
    index: int


@dataclass(frozen=True)
class Looks:
    """How all series of a report are called and drawn.

    `names` and `styles` hold every series; `legend` has one (name, style) per switch; series
    with equal `panels` may share a chart, for no two of them look the same.
    """

    names: Mapping[Series, str]
    styles: Mapping[Series, Style]
    panels: Mapping[Series, tuple[int, str]]
    legend: tuple[tuple[str, Style], ...]


def _rows_name(series: Series, group: Iterable[Series]) -> str:
    """Mask and pool, as far as they differ within the group."""
    group = list(group)
    parts = []
    if len({one.mask for one in group}) > 1:
        parts.append(series.mask or "no mask")
    if len({one.pool for one in group}) > 1:
        parts.append("all rows" if series.pool in (None, "none") else f"{series.pool} pool")
    return ", ".join(parts)


def make_looks(series: Iterable[Series]) -> Looks:
    """Names and styles of a report's series.

    Few series have a style each. With more of them than hues, those that differ only in their
    rows share one and are drawn in charts of their own.
    """
    known = sorted(set(series), key=Series.order)
    alike: dict[str, list[Series]] = {}
    for one in known:
        alike.setdefault(one.name, []).append(one)
    names = {}
    for one in known:
        rows = _rows_name(one, alike[one.name])
        names[one] = f"{one.name}, {rows}" if rows else one.name
    if len(known) <= NEUTRAL or len(alike) == len(known):
        styles = dict(zip(known, _styles(known), strict=True))
        panels = {one: (styles[one].lane, "") for one in known}
        return Looks(names, styles, panels, tuple((names[one], styles[one]) for one in known))
    first = [group[0] for group in alike.values()]
    by_name = dict(zip(alike, _styles(first), strict=True))
    styles = {one: by_name[one.name] for one in known}
    panels = {one: (styles[one].lane, _rows_name(one, known)) for one in known}
    return Looks(names, styles, panels, tuple(by_name.items()))


def _usual_slot(series: Series) -> int | None:
    if series.probe == "attention":
        return 1 if series.heads in (None, 1) else 2
    usual = {"logistic": 0, "mean_difference": 3, "mlp": 4, "ridge": NEUTRAL}
    return usual.get(series.probe)


def _styles(series: Sequence[Series]) -> list[Style]:
    """A style for each: known probes get their usual slot, others a free one.

    There is never a sixth hue: what finds no free slot goes to the next lane.
    """
    slots: list[tuple[int, int] | None] = [None] * len(series)
    taken: set[tuple[int, int]] = set()
    for index, one in enumerate(series):
        usual = _usual_slot(one)
        if usual is not None and (0, usual) not in taken:
            slots[index] = (0, usual)
            taken.add((0, usual))
    for index, one in enumerate(series):
        if slots[index] is not None:
            continue
        lane = 0
        while not (free := [slot for slot in range(NEUTRAL) if (lane, slot) not in taken]):
            lane += 1
        usual = _usual_slot(one)
        slot = usual if usual in free else free[0]
        slots[index] = (lane, slot)
        taken.add((lane, slot))
    return [
        Style(slot=place[1], lane=place[0], index=index)
        for index, place in enumerate(slots)
        if place is not None
    ]
