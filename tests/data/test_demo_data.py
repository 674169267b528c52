"""The demonstration dataset: sizes, labels, determinism, and that tokens are what they say."""

from __future__ import annotations

import ast
import collections
import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore import demo_data
from actstore.data import read_dataset
from actstore.demo_data import (
    CHAPTERS,
    TOKEN_TYPES,
    DemoDataset,
    label_tokens,
    split_prose,
    write_demo_dataset,
)
from actstore.errors import DatasetError, ResourceError


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return write_demo_dataset(tmp_path_factory.mktemp("demo") / "made" / "here")


def test_docstrings(demo: DemoDataset) -> None:
    rows = rows_of(demo.docstrings)
    assert len(rows) == demo.n_docstrings
    assert 2000 <= len(rows) <= 3500
    assert all(list(row) == ["text", "chapter", "module"] for row in rows)
    assert all(CHAPTERS[row["module"]] == row["chapter"] for row in rows)
    assert len({row["text"] for row in rows}) == len(rows)
    lengths = [len(row["text"].split()) for row in rows]
    assert min(lengths) >= 10
    assert max(lengths) <= 120
    assert not any(row["text"].startswith("\n") or ">>> " in row["text"][:4] for row in rows)


def test_every_chapter_has_enough_examples_from_several_modules(demo: DemoDataset) -> None:
    rows = rows_of(demo.docstrings)
    sizes = collections.Counter(row["chapter"] for row in rows)
    assert 8 <= len(sizes) <= 12
    assert set(sizes) == set(CHAPTERS.values())
    assert min(sizes.values()) >= 60
    # No chapter is so large that naming it always is a good guess.
    assert max(sizes.values()) < 0.2 * len(rows)
    for chapter in sizes:
        assert len({row["module"] for row in rows if row["chapter"] == chapter}) >= 2


def test_code(demo: DemoDataset) -> None:
    rows = rows_of(demo.code)
    assert len(rows) == demo.n_snippets
    assert 500 <= len(rows) <= 700
    assert len({row["text"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == ["text", "words", "token_type", "module"]
        assert 16 <= len(row["words"]) == len(row["token_type"]) <= 120
        assert row["module"] in CHAPTERS
        assert not row["text"][0].isspace()
    seen = collections.Counter(tag for row in rows for tag in row["token_type"])
    assert set(seen) == set(TOKEN_TYPES)
    assert min(seen.values()) > 100


def test_the_files_read_as_datasets_with_words_in_place(demo: DemoDataset) -> None:
    docstrings = read_dataset(demo.docstrings)
    assert docstrings.n_examples == demo.n_docstrings
    assert docstrings.word_spans is None
    code = read_dataset(demo.code)
    assert code.word_spans is not None
    for text, words, (starts, ends) in zip(
        code.texts(), code.table.column("words").to_pylist(), code.word_spans, strict=True
    ):
        assert [text[s:e] for s, e in zip(starts, ends, strict=True)] == words
        between = [text[e:s] for e, s in zip([0, *ends], [*starts, len(text)], strict=True)]
        # Nothing but space, or a backslash at a line's end, is left between tokens.
        assert set("".join(between)) <= set(" \n\t\f\\")


def test_two_runs_give_the_same_bytes(demo: DemoDataset, tmp_path: Path) -> None:
    again = write_demo_dataset(tmp_path)
    assert again.docstrings.read_bytes() == demo.docstrings.read_bytes()
    assert again.code.read_bytes() == demo.code.read_bytes()
    assert sorted(tmp_path.iterdir()) == [again.code, again.docstrings]


def test_texts_are_real_source(demo: DemoDataset) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    for module in ("textwrap", "queue", "ftplib"):
        source = (library / f"{module}.py").read_text("utf-8")
        lines = {line.strip() for line in source.split("\n")}
        snippets = [row["text"] for row in rows_of(demo.code) if row["module"] == module]
        assert snippets
        for text in snippets:
            assert {line.strip() for line in text.split("\n")} <= lines


def test_modules_are_parsed_and_not_imported(demo: DemoDataset) -> None:
    # These names are built from the docstring of the class, as `ast` sees it.
    tree = ast.parse((Path(sysconfig.get_path("stdlib")) / "queue.py").read_text("utf-8"))
    wanted = {ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    got = {row["text"] for row in rows_of(demo.docstrings) if row["module"] == "queue"}
    assert len(got & wanted) >= 5


# --- tokens ----------------------------------------------------------------------------------


def types(text: str) -> list[tuple[str, str]]:
    return [(word, tag) for word, tag in label_tokens(text) if tag != "OP"]


def test_token_types() -> None:
    assert label_tokens("if x: # why\n    return len(y) + 0x1F\n") == [
        ("if", "KEYWORD"),
        ("x", "NAME"),
        (":", "OP"),
        ("# why", "COMMENT"),
        ("return", "KEYWORD"),
        ("len", "BUILTIN"),
        ("(", "OP"),
        ("y", "NAME"),
        (")", "OP"),
        ("+", "OP"),
        ("0x1F", "NUMBER"),
    ]


def test_a_builtin_name_used_for_something_else_is_a_name() -> None:
    assert types("file.open(type=int)") == [
        ("file", "NAME"),
        ("open", "NAME"),
        ("type", "NAME"),
        ("int", "BUILTIN"),
    ]
    assert types("max = 3") == [("max", "NAME"), ("3", "NUMBER")]
    assert types("help(None)") == [("help", "NAME"), ("None", "KEYWORD")]


@pytest.mark.parametrize(
    "literal",
    [
        "'a'",
        'f"{x!r:>{width}} {{brace}}"',
        "f'''two\nlines {f(\"in\" + f'{deep}')} é'''",
        "rb'\\d'",
        '"""é\n  😀"""',
        r"f'it\'s {{}} \N{DEGREE SIGN} { x = } {{{y}}}'",
        'f"""é {a}\n  😀 {b:{c}}"""',
        'rf"{x} {{ }} "',
    ],
)
def test_a_string_is_one_token_in_every_version(literal: str) -> None:
    assert label_tokens(f"é = {literal} + b\n") == [
        ("é", "NAME"),
        ("=", "OP"),
        (literal, "STRING"),
        ("+", "OP"),
        ("b", "NAME"),
    ]


@pytest.mark.parametrize("text", ["", "x = (", "'''open", "if x:\n        a\n    b\n"])
def test_what_cannot_be_tokenised_gives_nothing(text: str) -> None:
    assert label_tokens(text) == []


# --- prose -----------------------------------------------------------------------------------


def test_paragraphs_are_kept_together_as_they_fit() -> None:
    words = " ".join(["word"] * 30)
    assert list(split_prose(f"{words}\n\n{words}\n   \n{words}")) == [
        f"\n\n{words}\n\n{words}",
        words,
    ]
    assert list(split_prose(f"{words}\n\n>>> 1 + 1\n2\n\nend"))[-1].split() == [
        *words.split(),
        "end",
    ]


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=6), min_size=1, max_size=8))
def test_prose_is_divided_and_never_lost(paragraphs: list[list[int]]) -> None:
    numbers = iter(range(10**6))
    text = "\n\n".join(
        "\n".join(" ".join(str(next(numbers)) for _ in range(n)) for n in lines)
        for lines in paragraphs
    )
    pieces = list(split_prose(text))
    assert " ".join(pieces).split() == text.split()
    assert all(len(piece.split()) <= 70 for piece in pieces)


# --- what can go wrong -----------------------------------------------------------------------


def test_a_python_without_source_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "_library", lambda: tmp_path / "python311.zip")
    with pytest.raises(DatasetError, match=r"python311\.zip: holds no Python source files"):
        write_demo_dataset(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "test" / "lib"  # a folder of that name above the library is no matter
    (library / "json" / "tests").mkdir(parents=True)
    (library / "site-packages").mkdir()
    prose = "one two three four five six seven eight nine ten"
    body = "        a = [1, 2, 3, 4, 5, 6, 7, 8]\n        return a\n"
    source = f'class A:\n    def f(self):\n        """{prose}."""\n{body}'
    (library / "_pydecimal.py").write_text(source)
    (library / "json" / "__init__.py").write_text(source)  # the same again
    (library / "json" / "tests" / "some.py").write_text(source.replace("one", "a test"))
    (library / "site-packages" / "json.py").write_text(source.replace("one", "foreign"))
    (library / "secret.py").write_text(source.replace("one", "undocumented"))
    (library / "csv.py").write_text("def f(x): return [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]\n")
    monkeypatch.setattr(demo_data, "_library", lambda: library)
    made = write_demo_dataset(tmp_path / "out")
    assert rows_of(made.docstrings) == [
        {"text": f"{prose}.", "chapter": "Numeric and Mathematical", "module": "decimal"}
    ]
    [row] = rows_of(made.code)
    assert row["text"] == "a = [1, 2, 3, 4, 5, 6, 7, 8]\nreturn a"
    assert row["token_type"][:4] == ["NAME", "OP", "OP", "NUMBER"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file: cannot be written"):
        write_demo_dataset(tmp_path / "file")
