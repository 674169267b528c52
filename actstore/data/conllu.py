"""CoNLL-U: one example per sentence, with lists of word annotations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import conllu
import numpy as np
import pyarrow as pa

from actstore.data.part import Part, not_utf8
from actstore.data.words import Spans, WordNotFoundError, locate_parts, locate_words
from actstore.errors import DatasetError

__all__ = ["read_conllu"]

_FIELDS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_TEXT_FIELDS = ("lemma", "upos", "xpos", "feats", "deprel")
_SCHEMA = pa.schema(
    [
        ("words", pa.list_(pa.string())),
        ("lemma", pa.list_(pa.string())),
        ("upos", pa.list_(pa.string())),
        ("xpos", pa.list_(pa.string())),
        ("feats", pa.list_(pa.string())),
        ("head", pa.list_(pa.int64())),
        ("deprel", pa.list_(pa.string())),
        ("text", pa.string()),
        ("sent_id", pa.string()),
        ("doc", pa.string()),
    ]
)


@dataclass
class _Surface:
    """A token as written, and the syntactic words that it stands for."""

    form: str
    space_after: bool
    words: list[dict[str, Any]] = field(default_factory=list)


def read_conllu(path: Path, limit: int | None) -> Part:
    """Columns `words, lemma, upos, xpos, feats, head, deprel` (a list per sentence, one entry per
    syntactic word), `text`, `sent_id`, `doc`.

    Empty nodes (8.1) are left out. "_" is null, except as a form, and as a lemma of the form "_".
    A missing `# text` is rebuilt from the forms and SpaceAfter=No. `doc` is carried on to the
    sentences that follow its `# newdoc`; a newdoc without id is named newdoc-1, newdoc-2, ... by
    its place in the file. Words of a multiword token are placed as `locate_parts` says.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    numbers: list[int] = []
    spans: list[Spans] = []
    doc: str | None = None
    n_docs = 0
    for number, lines in _sentences(path):
        if limit is not None and len(numbers) == limit:
            break
        where = f"{path}: line {number}"
        sentence = _parse(path, number, lines)
        metadata: dict[str, str | None] = sentence.metadata
        if "newdoc id" in metadata or "newdoc" in metadata:
            n_docs += 1
            doc = metadata.get("newdoc id") or metadata.get("newdoc") or f"newdoc-{n_docs}"
        if not sentence:
            continue
        surfaces = _surfaces(where, sentence)
        text = metadata.get("text")
        if text is None:
            text = "".join(s.form + " " * s.space_after for s in surfaces).rstrip(" ")
        spans.append(_locate(where, text, surfaces))
        numbers.append(number)
        words = [word for surface in surfaces for word in surface.words]
        columns["words"].append([word["form"] for word in words])
        columns["head"].append([word["head"] for word in words])
        for name in _TEXT_FIELDS:
            columns[name].append([_nullable(word, name) for word in words])
        columns["text"].append(text)
        columns["sent_id"].append(metadata.get("sent_id"))
        columns["doc"].append(doc)
    table = pa.table(columns, schema=_SCHEMA)
    return Part(str(path), table, numbers, word_spans=spans)


def _sentences(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Blocks between blank lines, with the line on which each starts."""
    block: list[str] = []
    start = 1
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    if not block:
                        start = number
                    block.append(line.rstrip("\n"))
                elif block:
                    yield start, block
                    block = []
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    if block:
        yield start, block


def _parse(path: Path, start: int, lines: list[str]) -> Any:
    for number, line in enumerate(lines, start=start):
        n_fields = line.count("\t") + 1
        if not line.startswith("#") and n_fields != len(_FIELDS):
            raise DatasetError(
                f"{path}: line {number} has {n_fields} columns separated by tabs, CoNLL-U has "
                f"{len(_FIELDS)}: correct the line"
            )
    try:
        return _parse_block(lines)
    except conllu.exceptions.ParseException as error:
        number, reason = _first_bad_line(start, lines) or (start, str(error))
        raise DatasetError(
            f"{path}: line {number}: {reason.rstrip('.')}: correct the line"
        ) from error


def _first_bad_line(start: int, lines: list[str]) -> tuple[int, str] | None:
    for number, line in enumerate(lines, start=start):
        try:
            _parse_block([line])
        except conllu.exceptions.ParseException as error:
            return number, str(error)
    return None


def _parse_block(lines: list[str]) -> Any:
    def keep(values: list[str], index: int) -> str:
        return values[index]

    # feats stays the string of the file; deps is not used and often large.
    parsers = {"feats": keep, "deps": keep}
    return conllu.parse_token_and_metadata("\n".join(lines), _FIELDS, parsers)


def _surfaces(where: str, sentence: Any) -> list[_Surface]:
    surfaces: list[_Surface] = []
    n_words, last_of_range = 0, 0
    for token in sentence:
        number = token["id"]
        if isinstance(number, tuple) and number[1] == ".":
            continue
        if isinstance(number, tuple):
            if number[0] != n_words + 1 or n_words < last_of_range:
                raise _misnumbered(where, token, n_words)
            last_of_range = number[2]
            surfaces.append(_Surface(token["form"], _space_after(token)))
            continue
        if number != n_words + 1:
            raise _misnumbered(where, token, n_words)
        n_words += 1
        if n_words > last_of_range:
            surfaces.append(_Surface(token["form"], _space_after(token)))
        surfaces[-1].words.append(token)
    if n_words < last_of_range:
        raise DatasetError(f"{where}: the sentence ends before its last word: correct its ids")
    return surfaces


def _misnumbered(where: str, token: Any, n_words: int) -> DatasetError:
    return DatasetError(
        f"{where}: word {token['form']!r} of this sentence is numbered {token['id']}, expected "
        f"{n_words + 1}: ids count from 1 in each sentence, and sentences end with a blank line"
    )


def _space_after(token: Any) -> bool:
    misc = token["misc"] or {}
    return bool(misc.get("SpaceAfter") != "No")


def _nullable(word: dict[str, Any], name: str) -> str | None:
    value: str | None = word[name]
    if value == "_" and not (name == "lemma" and word["form"] == "_"):
        return None
    return value


def _locate(where: str, text: str, surfaces: list[_Surface]) -> Spans:
    try:
        starts, ends = locate_words(text, [surface.form for surface in surfaces])
    except WordNotFoundError as error:
        raise DatasetError(
            f"{where}: token {error.index + 1} {error.word!r} is not in '# text' after the tokens "
            "before it: correct either, or remove the '# text' line to rebuild it from the tokens"
        ) from error
    if all(len(surface.words) == 1 for surface in surfaces):
        return starts, ends
    spans: list[tuple[int, int]] = []
    for surface, start, end in zip(surfaces, starts.tolist(), ends.tolist(), strict=True):
        if len(surface.words) == 1:
            spans.append((start, end))
        else:
            parts = locate_parts(surface.form, [word["form"] for word in surface.words])
            spans += [(start + low, start + high) for low, high in parts]
    both = np.array(spans, dtype=np.int32).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()
