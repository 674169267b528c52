from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.errors import InputError, UnknownNameError
from actstore.task import make_groups, make_task

TEXT = ["one", "two", "three", "two"]


def example_table(labels, **columns):
    n = len(labels)
    return pa.table({"text": [f"text {i}" for i in range(n)], "label": labels, **columns})


@pytest.fixture
def sentences():
    return pa.table(
        {
            "text": ["The dog saw the cat", "It ran", "A cat"],
            "words": [["The", "dog", "saw", "the", "cat"], ["It", "ran"], ["A", "cat"]],
            "upos": [["DET", "NOUN", "VERB", "DET", "NOUN"], ["PRON", "VERB"], ["DET", "NOUN"]],
            "feats": [["a", None, "a", "b", "b"], [None, "b"], ["a", "a"]],
            "doc": ["d1", "d1", "d2"],
        }
    )


@pytest.mark.parametrize(
    ("labels", "classes", "y"),
    [
        (["b", "a", "b", "a"], ("a", "b"), [1, 0, 1, 0]),
        ([10, 9, 10, 9, -1, -1], ("-1", "9", "10"), [2, 1, 2, 1, 0, 0]),
        ([True, False, True, False], ("false", "true"), [1, 0, 1, 0]),
        (["é", "Z", "z", "é", "Z", "z"], ("Z", "z", "é"), [2, 0, 1, 2, 0, 1]),
    ],
)
def test_classes_are_sorted_and_coded(labels, classes, y):
    task = make_task("label", example_table(labels))
    assert task.classes == classes
    assert task.y.tolist() == y
    assert task.y.dtype == np.int64
    assert task.kind == ("binary" if len(classes) == 2 else "multiclass")
    assert (task.spec, task.column, task.level) == ("label", "label", "example")
    assert task.example.tolist() == list(range(len(labels)))
    assert task.item is None


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ],
)
def test_every_text_type_gives_the_same_task(type_):
    column = pa.array(["y", "x", "y", "x"]).cast(type_)
    task = make_task("label", pa.table({"label": column}))
    assert task.classes == ("x", "y")
    assert task.y.tolist() == [1, 0, 1, 0]


def test_lists_of_every_text_type_give_the_same_task():
    for type_ in (pa.string_view(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        values = pa.array(["x", "y", "y", "x"]).cast(type_)
        tags = pa.LargeListArray.from_arrays([0, 2, 4], values)
        table = pa.table({"words": [["A", "b"], ["c", "a"]], "tag": tags})
        task = make_task("words:tag", table)
        assert task.y.tolist() == [0, 1, 1, 0]
        assert task.types.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint64(), pa.int32()])
def test_every_whole_number_type_gives_the_same_task(type_):
    task = make_task("label", pa.table({"label": pa.array([11, 2, 11, 2], type_)}))
    assert task.classes == ("2", "11")


@given(st.lists(st.sampled_from(["a", "b", "ab", "ü", "\U0001f600"]), min_size=2, max_size=30))
@settings(deadline=None)
def test_codes_name_the_label_of_every_item_whatever_the_chunking(labels):
    labels = labels * 2 + ["a", "a", "b", "b"]
    chunked = pa.chunked_array([labels[:3], [], labels[3:]])
    task = make_task("label", pa.table({"label": chunked}))
    assert [task.classes[c] for c in task.y] == labels
    assert list(task.classes) == sorted(set(labels))


def test_types_of_examples_are_distinct_texts():
    table = pa.table({"text": TEXT, "label": ["a", "b", "a", "b"]})
    types = make_task("label", table).types
    assert types[1] == types[3]
    assert len(set(types.tolist())) == 3
    without_text = make_task("label", table.drop_columns(["text"]))
    assert len(set(without_text.types.tolist())) == 4


def test_words_are_items(sentences):
    table = pa.concat_tables([sentences, sentences])
    task = make_task("words:upos", table)
    assert task.classes == ("DET", "NOUN", "PRON", "VERB")
    assert task.level == "word"
    assert task.column == "upos"
    assert task.example.tolist() == [0] * 5 + [1] * 2 + [2] * 2 + [3] * 5 + [4] * 2 + [5] * 2
    assert task.item is not None
    assert task.item.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1] * 2
    assert task.item.dtype == np.int32
    assert [task.classes[c] for c in task.y[:7]] == [
        *("DET", "NOUN", "VERB", "DET", "NOUN", "PRON", "VERB")
    ]
    assert task.types[0] == task.types[3]  # The, the
    assert task.types[4] == task.types[8]  # cat in two sentences
    assert len(set(task.types.tolist())) == 7


def test_word_rows_select_and_order_items(sentences):
    rows = (np.array([2, 0, 0, 2, 0]), np.array([1, 4, 0, 0, 3]))
    task = make_task("words:upos", sentences, word_rows=rows)
    assert [task.classes[c] for c in task.y] == ["NOUN", "NOUN", "DET", "DET", "DET"]
    assert task.example.tolist() == [2, 0, 0, 2, 0]
    assert task.item is not None
    assert task.item.tolist() == [1, 4, 0, 0, 3]
    assert task.types[0] == task.types[1]


def test_labels_of_words_without_a_row_may_be_missing(sentences):
    rows = (np.array([0, 0, 0, 0, 2]), np.array([0, 2, 3, 4, 1]))
    task = make_task("words:feats", sentences, word_rows=rows)
    assert [task.classes[c] for c in task.y] == ["a", "a", "b", "b", "a"]
    with pytest.raises(InputError, match=r"row 1, word 2 'dog'.*'feats' \(2 of 9 words\)"):
        make_task("words:feats", sentences)


def test_word_tasks_read_slices_and_chunks(sentences):
    table = pa.concat_tables([sentences, sentences]).slice(2, 3)  # A cat; The dog ...; It ran
    task = make_task("words:upos", pa.concat_tables([table, table]))
    assert [task.classes[c] for c in task.y[:3]] == ["DET", "NOUN", "DET"]
    assert task.example[:3].tolist() == [0, 0, 1]


def test_other_column_names(sentences):
    table = sentences.rename_columns(["t", "tokens", "upos", "feats", "doc"])
    table = pa.concat_tables([table, table])
    task = make_task("words:upos", table, words_column="tokens", text_column="t")
    assert task.n_items == 18
    assert task.n_classes == 4


BAD_EXAMPLES = [
    (["a"] * 4, r"one class only, 'a' \(4 items\)"),
    (["a", "a", "b"], r"class 'b' has one item \(1 of 2 classes do\)"),
    (["a", None, "b", None], r"no value in row 2 \(counting from 1; 2 of 4 rows\)"),
    (["a", "b", " ", "a"], r"no value in row 3 \(counting from 1; 1 of 4"),
    ([None, None], r"no value in row 1"),
    ([1, None, 1, 2], r"no value in row 2"),
    ([0.5, 1.5, 0.5, 1.5], r"real numbers \(double\): regression is not supported yet"),
    ([0.5, float("nan"), 0.5], r"no value in row 2"),
    ([Decimal("0.5"), Decimal("1.5")], r"real numbers \(decimal.*regression"),
    ([["a"], ["b"]], r"several labels at once are not supported yet.*--task words:label"),
    ([{"a": 1}, {"a": 2}], r"holds struct"),
    (list(range(101)), r"101 distinct whole numbers in 101 items.*regression is not supported"),
    ([], "no items"),
]


@pytest.mark.parametrize(("labels", "message"), BAD_EXAMPLES)
def test_bad_labels_are_refused_in_one_line(labels, message):
    table = pa.table({"label": labels if labels else pa.array([], pa.string())})
    with pytest.raises(InputError, match=message) as caught:
        make_task("label", table)
    assert "\n" not in str(caught.value)
    assert "'label'" in str(caught.value)


def test_many_whole_numbers_are_classes_when_they_repeat():
    assert make_task("label", example_table(list(range(101)) * 2)).n_classes == 101


def test_long_class_names_are_cut_in_messages():
    with pytest.raises(InputError) as caught:
        make_task("label", example_table(["x" * 500 + str(i) for i in range(5)]))
    assert len(str(caught.value)) < 250


def test_an_unknown_column_lists_the_nearest_first():
    with pytest.raises(UnknownNameError, match=r"no column 'lable': it has label, "):
        make_task("lable", example_table(["a", "b"], other=[1, 2]))
    wide = pa.table({f"c{i}": [1] for i in range(50)})
    with pytest.raises(UnknownNameError, match=r", \.\.\.$"):
        make_task("x", wide)


def test_an_unknown_word_column_lists_only_lists(sentences):
    with pytest.raises(UnknownNameError, match=r"'pos': it has upos, ") as caught:
        make_task("words:pos", sentences)
    assert "doc" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="no column of words 'tokens'"):
        make_task("words:upos", sentences, words_column="tokens")


def test_word_labels_must_match_the_words():
    table = pa.table({"words": [["a", "b"], ["c", "d"], ["e"]], "tag": [["x", "y"], ["x"], ["y"]]})
    with pytest.raises(InputError, match=r"row 2 .*has 1 entries in column 'tag' and 2 entries in"):
        make_task("words:tag", table)
    table = pa.table({"words": [["a", "b"], ["c"]], "tag": [["x", "y"], None]})
    with pytest.raises(InputError, match=r"row 2 .*has no list in column 'tag' and 1 entries in"):
        make_task("words:tag", table)
    table = pa.table({"words": [["a", "b"], ["c"]], "tag": ["x", "y"]})
    with pytest.raises(InputError, match=r"'tag' holds .*string, not a list.*--task tag takes"):
        make_task("words:tag", table)
    table = pa.table({"words": [["a", "b"]], "tag": [[0.5, 1.5]]})
    with pytest.raises(InputError, match="regression is not supported"):
        make_task("words:tag", table)
    table = pa.table({"words": [["a", "b"]], "tag": [[["x"], ["y"]]]})
    with pytest.raises(InputError, match="several labels at once"):
        make_task("words:tag", table)


@pytest.mark.parametrize("row", [(3, 0), (1, 2), (-1, 0), (0, -1)])
def test_word_rows_of_another_dataset_are_refused(sentences, row):
    rows = (np.array([0, row[0]]), np.array([0, row[1]]))
    with pytest.raises(InputError, match=rf"no word {row[1] + 1} in row {row[0] + 1} "):
        make_task("words:upos", sentences, word_rows=rows)


def test_groups_follow_a_column(sentences):
    table = pa.concat_tables([sentences, sentences])
    words = make_task("words:upos", table)
    by_doc = make_groups(words, "doc", table)
    assert by_doc.tolist() == [0] * 7 + [1] * 2 + [0] * 7 + [1] * 2
    assert (make_groups(words, "words:words", table) == words.types).all()
    by_tag = make_groups(words, "words:upos", table)
    assert (by_tag == words.y).all()
    texts = make_task("doc", table)
    assert make_groups(texts, "text", table).tolist() == [2, 1, 0, 2, 1, 0]


def test_bad_groups(sentences):
    table = pa.concat_tables([sentences, sentences])
    task = make_task("doc", table)
    with pytest.raises(UnknownNameError, match=r"group 'dox': .*it has doc, "):
        make_groups(task, "dox", table)
    with pytest.raises(InputError, match="is per word, but task 'doc' is per example"):
        make_groups(task, "words:upos", table)
    with pytest.raises(InputError, match=r"list per example; .* words:upos for a word task"):
        make_groups(task, "upos", table)
    words = make_task("words:upos", table)
    with pytest.raises(InputError, match=r"group 'words:feats': row 1, word 2 'dog'"):
        make_groups(words, "words:feats", table)
    empty = table.set_column(4, "doc", [["d", None, None, "d", "d", "d"]])
    with pytest.raises(InputError, match=r"no value in row 2 \(counting from 1; 2 of 6 rows\)"):
        make_groups(words, "doc", empty)
