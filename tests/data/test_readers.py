"""Reading every format, joining files, text and words, and errors that name file, row, column."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.data import Dataset, read_dataset
from actstore.errors import DatasetError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HARD_TEXTS = [
    "plain",
    "",
    "naïve Straße 日本語 😀 e\u0301",
    'quotes " and "", commas, and\ttabs',
    "lines\nof\r\ntext\u2028and\x85more",
    "NA",
    "null",
    "007",
    " space ",
]


def fails(source: str | Path, *fragments: str, **options: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        read_dataset(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def column(dataset: Dataset, name: str) -> list[Any]:
    values: list[Any] = dataset.table.column(name).to_pylist()
    return values


def write_rows(path: Path, texts: list[str]) -> Path:
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    kind = path.suffix
    if kind in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, ["text", "label"], delimiter="\t" if kind == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == ".json":
        write(path, json.dumps(rows))
    else:
        write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


# --- formats ---------------------------------------------------------------------------------

KINDS = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_hard_texts_survive_in_every_format(tmp_path: Path, kind: str) -> None:
    dataset = read_dataset(write_rows(tmp_path / f"some{kind}", HARD_TEXTS))
    assert dataset.texts() == HARD_TEXTS
    assert column(dataset, "label") == [number % 2 for number in range(len(HARD_TEXTS))]
    assert dataset.table.schema.field("text").type == pa.string()
    assert dataset.word_spans is None
    assert dataset.n_examples == len(HARD_TEXTS)
    assert dataset.source == str(tmp_path / f"some{kind}")


def test_the_fingerprint_is_of_the_values_alone(tmp_path: Path) -> None:
    found = {
        read_dataset(write_rows(tmp_path / f"some{kind}", HARD_TEXTS)).fingerprint()
        for kind in KINDS
    }
    assert len(found) == 1
    assert len(found.pop()) == 64


@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    for kind in (".csv", ".jsonl", ".parquet"):
        assert read_dataset(write_rows(folder / f"some{kind}", texts)).texts() == texts


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, kind: str) -> None:
    path = write_rows(tmp_path / f"some{kind}", ["é"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    dataset = read_dataset(path)
    assert dataset.table.column_names == ["text", "label"]
    assert dataset.texts() == ["é"]


@pytest.mark.parametrize("kind", KINDS)
def test_limit_keeps_the_first_rows(tmp_path: Path, kind: str) -> None:
    path = write_rows(tmp_path / f"some{kind}", HARD_TEXTS)
    assert read_dataset(path, limit=2).texts() == HARD_TEXTS[:2]
    assert read_dataset(path, limit=99).texts() == HARD_TEXTS
    fails(path, "limit 0", limit=0)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"latin{kind}"
    content = {
        ".jsonl": '{"text": "a"}\n{"text": "é"}\n',
        ".json": '[{"text": "a"},\n{"text": "é"}]',
        ".csv": "text\né\n",
    }[kind]
    write(path, content.encode("latin-1"))
    fails(path, f"{path}: line 2 is not UTF-8", "iconv")


def test_jsonl_takes_the_columns_of_all_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"text": "a"}\n\n{"text": "b", "n": 1.5, "tags": ["x"]}\n  \n{"n": 2, "text": "c"}',
    )
    dataset = read_dataset(path)
    assert dataset.table.column_names == ["text", "n", "tags"]
    assert column(dataset, "n") == [None, 1.5, 2.0]
    assert column(dataset, "tags") == [None, ["x"], None]


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ('{"text": "b"', ["line 3:", "not valid JSON", "column 13"]),
        ('{"text": "b"} {}', ["line 3:", "Extra data"]),
        ('["b"]', ["line 3 is a list, not an object"]),
        ("null", ["line 3 is null"]),
        ('"text"', ["line 3 is a string"]),
        ('{"text": "b", "text": "c"}', ["line 3:", "'text'", "twice"]),
        ('{"text": 5}', ["line 3:", "'text'", "holds 5", "does not fit the type"]),
        ('{"text": "b", "label": "x"}', ["line 3:", "'label'", "holds 'x'", "one type"]),
        ('{"text": "\\ud800"}', ["line 3:", "'text'", "cannot be stored"]),
        ('{"text": "b", "\\ud800": 1}', ["not valid Unicode"]),
        ('{"text": null}', ["line 3:", "'text' is null", "1 of 3 rows"]),
        ('{"label": 1}', ["line 3:", "'text' is null"]),
        ("[" * 100_000, ["line 3:", "cannot be read"]),
        ('{"text": "b", "n": %s}' % ("9" * 5000), ["line 3:", "cannot be read"]),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, line: str, fragments: list[str]) -> None:
    path = write(
        tmp_path / "bad.jsonl", f'{{"text": "a", "label": 1}}\n\n{line}\n{{"text": "c"}}\n'
    )
    fails(path, str(path), *fragments)


@pytest.mark.parametrize("name", ["a.jsonl", "a.conllu"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    fails(write(tmp_path / name, ""), f"{name}: has no examples")
    fails(write(tmp_path / name, "\n\n"), f"{name}: has no examples")


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ('{"text": ["a"]}', ["holds an object, not a list of objects", ".jsonl"]),
        ('{"text": "a"}\n{"text": "b"}', ["not valid JSON", "line 2", ".jsonl"]),
        ('[{"text": "a"}, 3]', ["record 2 is a number"]),
        ('[{"text": "a"}, {"text": null}]', ["record 2:", "'text' is null"]),
        ('[{"text": "a"}, {"text": ["b"]}]', ["record 2:", "'text'", "one type"]),
        ("", ["not valid JSON"]),
        ("[]", ["has no examples"]),
    ],
)
def test_json_errors(tmp_path: Path, content: str, fragments: list[str]) -> None:
    fails(write(tmp_path / "bad.json", content), "bad.json", *fragments)


def test_csv_columns_of_numbers_are_numbers_and_names_stay_names(tmp_path: Path) -> None:
    content = (
        "text,int,real,code,mixed,gap,big,none\n"
        "5,1,1.5,007,1,,12345678901234567890,\n"
        '6,-20,2e3,008,x,3,1,""\n'
    )
    dataset = read_dataset(write(tmp_path / "a.csv", content))
    assert {name: column(dataset, name) for name in dataset.table.column_names} == {
        "text": ["5", "6"],
        "int": [1, -20],
        "real": [1.5, 2000.0],
        "code": ["007", "008"],
        "mixed": ["1", "x"],
        "gap": [None, 3],
        "big": ["12345678901234567890", "1"],
        "none": [None, None],
    }


def test_csv_errors_count_lines_and_not_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",1\n\nthree\n')
    fails(path, f"{path}: line 5 has 1 cells, the header has 2")
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",1\na,b,c\n')
    fails(path, "line 4 has 3 cells", "quote")
    path = write(tmp_path / "a.csv", 'text,label\na,1\n"never closed,2\nb,3\n')
    fails(path, "line 3:", "quote")
    path = write(tmp_path / "a.csv", 'text,label\na,1\n"closed"early,2\n')
    fails(path, "line 3:", "quote")
    path = write(tmp_path / "a.csv", "text,label,text\na,1,b\n")
    fails(path, "'text' appears twice")
    fails(write(tmp_path / "a.csv", ""), "is empty")
    fails(write(tmp_path / "a.csv", "text,label\n"), "has no examples")
    fails(write(tmp_path / "a.tsv", "text\tlabel\na\n"), "a tab")


def test_csv_cells_may_be_long(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    text = "word " * 60_000
    path = write(tmp_path / "a.csv", f"text\n{text}\n")
    assert read_dataset(path).texts() == [text]
    assert csv.field_size_limit() == before


def test_parquet_types_are_made_plain(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b", "a"], pa.large_string()),
            "label": pa.array(["x", None, "x"]).dictionary_encode(),
            "words": pa.array([["a"], ["b"], ["a"]], pa.large_list(pa.large_string())),
            "pair": pa.array([[1, 2]] * 3, pa.list_(pa.int32(), 2)),
            "struct": pa.array([{"k": "v"}] * 3, pa.struct([("k", pa.large_string())])),
        }
    ).replace_schema_metadata({"pandas": "{}"})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=1)
    dataset = read_dataset(path)
    types = {field.name: str(field.type) for field in dataset.table.schema}
    assert types["text"] == types["label"] == "string"
    assert types["words"] == "list<item: string>"
    assert types["pair"] == "list<item: int32>"
    assert types["struct"] == "struct<k: string>"
    assert dataset.table.to_pylist() == table.to_pylist()
    assert dataset.table.schema.metadata is None
    assert dataset.word_spans is not None
    assert read_dataset(path, limit=2).texts() == ["a", "b"]


def test_parquet_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1 is not enough")
    fails(path, f"{path}: is not a readable Parquet file")
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    fails(path, "'text' appears twice")
    pq.write_table(pa.table({"text": ["a", None, None]}), path)
    fails(path, "record 2:", "'text' is null (2 of 3 rows)")
    folder = tmp_path / "key=value"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"]}), folder / "a.parquet")
    assert read_dataset(folder / "a.parquet").table.column_names == ["text"]


# --- fingerprint -----------------------------------------------------------------------------


def fingerprint(table: pa.Table) -> str:
    return Dataset("made here", table, "text", None).fingerprint()


def test_fingerprint_ignores_chunks_slices_and_bytes_under_nulls() -> None:
    values = {
        "text": ["a", "bc", "", "d"],
        "n": [1, None, 3, 4],
        "l": [["x", None], [], None, ["y"]],
        "b": [True, None, False, True],
        "s": [{"k": 1}, None, {"k": None}, {"k": 4}],
    }
    table = pa.table(values)
    chunked = pa.concat_tables([table.slice(number, 1) for number in range(4)])
    sliced = pa.concat_tables([table, table]).combine_chunks().slice(2, 4)
    swapped = pa.concat_tables([table.slice(2), table.slice(0, 2)])
    assert chunked.column(0).num_chunks == 4
    assert fingerprint(chunked) == fingerprint(table)
    assert fingerprint(sliced) == fingerprint(swapped) != fingerprint(table)
    # The same nulls, with other numbers left under them.
    masked = pa.array(np.array([1, 99, 3, 4]), mask=np.array([False, True, False, False]))
    assert fingerprint(table.set_column(1, "n", masked)) == fingerprint(table)


@pytest.mark.parametrize(
    "other",
    [
        {"text": ["a", "bd"], "n": [1, 2]},
        {"text": ["ab", "c"], "n": [1, 2]},
        {"text": ["a", "bc"], "n": [1, 3]},
        {"text": ["a", "bc"], "n": [1, None]},
        {"text": ["a", "bc"], "n": [1.0, 2.0]},
        {"text": ["a", "bc"], "n": ["1", "2"]},
        {"text": ["a", "bc"], "m": [1, 2]},
        {"text": ["a", "bc"]},
        {"text": ["a", None], "n": [1, 2]},
        {"n": [1, 2], "text": ["a", "bc"]},
        {"text": ["a", "bc"], "n": [[1], [2]]},
    ],
)
def test_fingerprint_sees_every_change(other: dict[str, list[Any]]) -> None:
    assert fingerprint(pa.table(other)) != fingerprint(pa.table({"text": ["a", "bc"], "n": [1, 2]}))


def test_fingerprint_sees_how_lists_are_divided() -> None:
    def of(lists: list[Any]) -> str:
        return fingerprint(pa.table({"text": ["a"] * len(lists), "l": lists}))

    found = {of([["a"], ["b"]]), of([["a", "b"], []]), of([[], ["a", "b"]]), of([["ab"], [""]])}
    assert len(found) == 4


def test_fingerprint_of_other_types_depends_on_values() -> None:
    days = [pa.array([0, n], pa.date32()) for n in (1, 2)]
    assert len({fingerprint(pa.table({"text": ["a", "b"], "d": day})) for day in days}) == 2


# --- several files ---------------------------------------------------------------------------


def test_files_joined_by_commas(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,1\nb,2\n")
    write(tmp_path / "test.csv", "label,text\nx,c\n")
    dataset = read_dataset(f"{tmp_path}/train.csv, {tmp_path}/test.csv")
    assert dataset.texts() == ["a", "b", "c"]
    # A column is typed by the rows of all files.
    assert column(dataset, "label") == ["1", "2", "x"]
    assert dataset.table.column_names == ["text", "label"]
    assert read_dataset(f"{tmp_path}/train.csv,{tmp_path}/test.csv", limit=1).texts() == ["a"]
    whole = write(tmp_path / "whole.csv", "text,label\na,1\nb,2\nc,x\n")
    assert read_dataset(whole).fingerprint() == dataset.fingerprint()


def test_rows_of_joined_files_are_named_by_their_own_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    bad = write(tmp_path / "b.jsonl", '{"text": "c"}\n\n{"text": null}\n')
    fails(f"{tmp_path}/a.jsonl,{bad}", f"{bad}: line 3: column 'text' is null (1 of 4 rows)")


def test_joined_files_need_the_same_columns(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", "text,label\na,1\n")
    b = write(tmp_path / "b.csv", "text,tag\na,1\n")
    fails(f"{a},{b}", f"{b}: lacks column 'label'", str(a))
    b = write(tmp_path / "b.csv", "text,label,more\na,1,2\n")
    fails(f"{a},{b}", f"{a}: lacks column 'more'", str(b))
    a = write(tmp_path / "a.jsonl", '{"text": "a", "label": 1}')
    b = write(tmp_path / "b.jsonl", '{"text": "b", "label": "x"}')
    fails(f"{a},{b}", f"{b}: column 'label' is of type string", "int64", "one type")
    fails(f"{a},{tmp_path}/b.csv", "different formats")


def test_joined_files_widen_numbers_and_nulls(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", '{"text": "a", "n": 1, "l": null}')
    b = write(tmp_path / "b.jsonl", '{"text": "b", "n": 1.5, "l": "x"}')
    dataset = read_dataset(f"{a},{b}")
    assert column(dataset, "n") == [1.0, 1.5]
    assert column(dataset, "l") == [None, "x"]


def test_patterns_folders_and_names_with_commas(tmp_path: Path) -> None:
    for name in "ba":
        write(tmp_path / f"{name}.jsonl", json.dumps({"text": name}))
    write(tmp_path / "notes.txt", "not data")
    assert read_dataset(f"{tmp_path}/*.jsonl").texts() == ["a", "b"]
    assert read_dataset(tmp_path).texts() == ["a", "b"]
    odd = write(tmp_path / "x,y.jsonl", '{"text": "one file"}')
    assert read_dataset(odd).texts() == ["one file"]
    many = ",".join([str(tmp_path / "a.jsonl")] * 200)
    assert read_dataset(many).n_examples == 200


@pytest.mark.parametrize(
    ("source", "fragments"),
    [
        ("missing.csv", ["missing.csv: no such file", ".jsonl"]),
        ("./missing", ["no such file"]),
        ("data/of/mine", ["no such file"]),
        ("missing*.csv", ["no such file"]),
        ("a.csv,missing.csv", ["missing.csv: no such file"]),
        ("a.csv,", ["empty file name"]),
        ("", ["no such file"]),
        ("a.txt", ["its format is unknown", ".conllu"]),
        ("s3://bucket/a.csv", ["not by URL"]),
        ("empty", ["holds no dataset"]),
    ],
)
def test_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, fragments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", "text\na\n")
    write(tmp_path / "a.txt", "a")
    (tmp_path / "empty").mkdir()
    fails(source, *fragments)


def test_home_folder_and_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "a.csv", "text\na\n")
    assert read_dataset("~/a.csv").texts() == ["a"]
    path.chmod(0)
    if not os.access(path, os.R_OK):  # root reads everything
        fails(path, "cannot be read")
    fails(path, "split 'train'", "Hugging Face", split="train")


# --- text and words --------------------------------------------------------------------------


def test_an_unknown_column_lists_the_nearest_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "label": "x", "sentence": "a"}')
    fails(path, "no text column 'sentense'", "('sentence', 'id', 'label')", text_column="sentense")
    fails(path, "no text column 'text'", "--text-column")
    fails(path, "column 'id' is of type int64, not text", "'sentence'", text_column="id")
    fails(path, "no words column 'tokens'", text_column="sentence", words_column="tokens")
    fails(path, "'label' is of type string", text_column="sentence", words_column="label")
    assert read_dataset(path, text_column="sentence").texts() == ["a"]


def test_words_are_located_in_the_text(tmp_path: Path) -> None:
    rows = [
        {"text": "Héllo, 世界!", "words": ["Héllo", ",", "世界", "!"]},
        {"text": "", "words": []},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    dataset = read_dataset(path)
    assert dataset.word_spans is not None
    assert [starts.tolist() for starts, _ in dataset.word_spans] == [[0, 5, 7, 9], []]
    assert [ends.tolist() for _, ends in dataset.word_spans] == [[5, 6, 9, 10], []]
    assert all(part.dtype == np.int32 for spans in dataset.word_spans for part in spans)


def test_words_without_a_text_are_joined(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"words": ["a", "bc"]}\n{"words": []}\n{"words": ["d"]}')
    dataset = read_dataset(path)
    assert dataset.texts() == ["a bc", "", "d"]
    assert dataset.table.column_names == ["words", "text"]
    assert dataset.word_spans is not None
    assert [starts.tolist() for starts, _ in dataset.word_spans] == [[0, 2], [], [0]]
    # A text column that was asked for by name and is not there is a mistake.
    fails(path, "no text column 'sentence'", text_column="sentence")


def test_words_under_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"tokens": ["a", "b"], "words": 2}')
    dataset = read_dataset(path, words_column="tokens")
    assert dataset.texts() == ["a b"]
    # A count that is called "words" is an ordinary column.
    path = write(tmp_path / "b.jsonl", '{"text": "a b", "words": 2}')
    assert read_dataset(path).word_spans is None


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ({"text": "a b", "words": ["a", "c"]}, ["word 2 'c'", "'words'", "'text'"]),
        ({"text": "a b", "words": ["a", None]}, ["word 2 of column 'words' is null"]),
        ({"text": "a b", "words": None}, ["line 2: column 'words' is null"]),
        ({"text": "a b"}, ["column 'words' is null"]),
    ],
)
def test_words_that_are_not_right(
    tmp_path: Path, row: dict[str, Any], fragments: list[str]
) -> None:
    path = write(
        tmp_path / "a.jsonl", '{"text": "a", "words": ["a"]}\n' + json.dumps(row)
    )  # fmt: skip
    fails(path, f"{path}: line 2:", *fragments)


# --- Hugging Face ----------------------------------------------------------------------------


def test_saved_folder(tmp_path: Path) -> None:
    import datasets

    data = {"text": ["é", "b", "c"], "label": [0, 1, -1], "words": [["é"], ["b"], []]}
    features = datasets.Features(
        {
            "text": datasets.Value("large_string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "words": datasets.List(datasets.Value("string")),
        }
    )
    saved = datasets.Dataset.from_dict(data, features=features)
    saved.select([2, 0]).save_to_disk(tmp_path / "one")
    dataset = read_dataset(tmp_path / "one")
    assert dataset.texts() == ["c", "é"]
    assert column(dataset, "label") == [None, "no"]
    assert dataset.word_spans is not None
    assert read_dataset(tmp_path / "one", limit=1).texts() == ["c"]
    fails(tmp_path / "one", "without splits", split="train")

    splits = datasets.DatasetDict({"train": saved, "test": saved.select([1])})
    splits.save_to_disk(tmp_path / "two")
    assert read_dataset(tmp_path / "two", split="test").texts() == ["b"]
    fails(tmp_path / "two", "several splits", "'train', 'test'")
    fails(tmp_path / "two", "no split 'tests'", "'test', 'train'", split="tests")
    datasets.DatasetDict({"only": saved}).save_to_disk(tmp_path / "three")
    assert read_dataset(tmp_path / "three").n_examples == 3


def test_class_numbers_in_lists_become_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "words": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["NOUN", "VERB"])),
        }
    )
    data = {"words": [["go", "home"], []], "tags": [[1, 0], []]}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "tagged")
    assert column(read_dataset(tmp_path / "tagged"), "tags") == [["VERB", "NOUN"], []]


def test_a_damaged_saved_folder(tmp_path: Path) -> None:
    write(tmp_path / "state.json", "{}")
    fails(tmp_path, f"{tmp_path}: cannot be loaded (")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """Puts a result or an error in the place of the hub; the calls are recorded."""
    import datasets

    def prepare(result: Any) -> list[Any]:
        calls: list[Any] = []

        def load_dataset(*args: Any, **options: Any) -> Any:
            calls.append((args, options))
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return prepare


def test_hub_ids(hub: Callable[[Any], list[Any]]) -> None:
    import datasets

    made = datasets.Dataset.from_dict({"sentence": ["a", "b"]})
    calls = hub(made)
    dataset = read_dataset("some/sentences", text_column="sentence", split="train", revision="v1")
    assert dataset.texts() == ["a", "b"]
    assert dataset.source == "some/sentences"
    read_dataset("glue:sst2", text_column="sentence", limit=1)
    assert calls == [
        (("some/sentences", None), {"split": "train", "revision": "v1"}),
        (("glue", "sst2"), {"split": None, "revision": None}),
    ]
    hub(datasets.DatasetDict({"train": made, "test": made}))
    fails("some/sentences", "several splits", "'train', 'test'")
    hub(datasets.DatasetDict({"train": made}))
    assert read_dataset("some/sentences", text_column="sentence").n_examples == 2


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ConnectionError("no route\nto the hub"), "ConnectionError: no route)"),
        (ValueError("Unknown split 'x'."), "ValueError: Unknown split 'x'.)"),
        (RuntimeError(""), "(RuntimeError)"),
    ],
)
def test_hub_errors_are_one_line(
    hub: Callable[[Any], list[Any]], error: Exception, shown: str
) -> None:
    hub(error)
    fails("owner/name", "owner/name: no such file", shown, "network", "HF_TOKEN")


# --- the rest --------------------------------------------------------------------------------


def test_importing_the_readers_does_not_import_datasets() -> None:
    code = (
        "import sys, actstore.data.dataset, actstore.data.readers\n"
        "heavy = {'datasets', 'torch', 'transformers', 'ray', 'zarr', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the data folder is not beside the checkout")
def test_banking77() -> None:
    folder = SHARED / "banking77"
    dataset = read_dataset(f"{folder}/train.csv,{folder}/test.csv")
    assert dataset.n_examples == 10_003 + 3_080
    names = json.loads((folder / "categories.json").read_text("utf-8"))
    assert set(column(dataset, "category")) == set(names)
    assert dataset.texts()[0] == "I am still waiting on my card?"
    assert any("\n" in text for text in dataset.texts())
