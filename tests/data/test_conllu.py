"""CoNLL-U: columns, documents, multiword tokens, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.data import Dataset, read_dataset
from actstore.errors import DatasetError

EWT = Path(__file__).resolve().parents[2].parent / "shared/data/ud_english_ewt/dev.conllu"


def row(number: str, form: str, *rest: str, misc: str = "_") -> str:
    cells = [number, form, *rest]
    return "\t".join([*cells, *["_"] * (9 - len(cells)), misc])


def sentence(*lines: str) -> str:
    return "\n".join(lines) + "\n\n"


def read(tmp_path: Path, *sentences: str) -> Dataset:
    path = tmp_path / "some.conllu"
    path.write_text("".join(sentences), encoding="utf-8", newline="")
    return read_dataset(path)


def fails(tmp_path: Path, *sentences: str) -> str:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, *sentences)
    message = str(caught.value)
    assert "\n" not in message
    return message


def located(dataset: Dataset, example: int) -> list[str]:
    assert dataset.word_spans is not None
    starts, ends = dataset.word_spans[example]
    assert starts.dtype == ends.dtype == np.int32
    text = dataset.texts()[example]
    return [text[s:e] for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]


FIRST = sentence(
    "# newdoc id = d1",
    "# sent_id = s1",
    "# text = She didn't.",
    row("1", "She", "she", "PRON", "PRP", "Case=Nom|Person=3", "2", "nsubj"),
    row("2-3", "didn't", misc="SpaceAfter=No"),
    row("2", "did", "do", "AUX", "VBD", "_", "0", "root"),
    row("3", "n't", "not", "PART", "RB", "Polarity=Neg", "2", "advmod"),
    row("4", ".", ".", "PUNCT", ".", "_", "2", "punct"),
)


def test_columns_of_a_sentence(tmp_path: Path) -> None:
    dataset = read(tmp_path, FIRST)
    assert dataset.text_column == "text"
    assert dataset.table.column_names == [
        *["words", "lemma", "upos", "xpos", "feats", "head", "deprel"],
        *["text", "sent_id", "doc"],
    ]
    assert dataset.table.to_pylist() == [
        {
            "words": ["She", "did", "n't", "."],
            "lemma": ["she", "do", "not", "."],
            "upos": ["PRON", "AUX", "PART", "PUNCT"],
            "xpos": ["PRP", "VBD", "RB", "."],
            "feats": ["Case=Nom|Person=3", None, "Polarity=Neg", None],
            "head": [2, 0, 2, 2],
            "deprel": ["nsubj", "root", "advmod", "punct"],
            "text": "She didn't.",
            "sent_id": "s1",
            "doc": "d1",
        }
    ]
    assert located(dataset, 0) == ["She", "did", "n't", "."]


def test_documents_are_carried_to_the_sentences_that_follow(tmp_path: Path) -> None:
    plain = sentence(row("1", "Word"))
    dataset = read(
        tmp_path,
        plain,
        sentence("# newdoc id = a", row("1", "One")),
        plain,
        plain,
        sentence("# newdoc", row("1", "Two")),
        plain,
        sentence("# newdoc id = b"),  # a block of comments alone
        plain,
    )
    docs = dataset.table.column("doc").to_pylist()
    assert docs == [None, "a", "a", "a", "newdoc-2", "newdoc-2", "b"]
    assert dataset.table.column("sent_id").null_count == 7


def test_underscores_are_null_but_not_as_a_form(tmp_path: Path) -> None:
    table = read(tmp_path, sentence(row("1", "_", "_", "PUNCT"), row("2", "a"))).table
    assert table.column("words").to_pylist() == [["_", "a"]]
    assert table.column("lemma").to_pylist() == [["_", None]]
    for name in ("xpos", "feats", "head", "deprel"):
        assert table.column(name).to_pylist() == [[None, None]]


def test_a_missing_text_is_rebuilt_from_the_surface(tmp_path: Path) -> None:
    lines = [line for line in FIRST.strip().split("\n") if not line.startswith("# text")]
    dataset = read(tmp_path, sentence(*lines))
    assert dataset.texts() == ["She didn't."]
    assert located(dataset, 0) == ["She", "did", "n't", "."]


def test_words_that_are_not_spelled_out_get_the_whole_token(tmp_path: Path) -> None:
    dataset = read(
        tmp_path,
        sentence(
            "# text = Retour du café.",
            row("1", "Retour"),
            row("2-3", "du"),
            row("2", "de"),
            row("3", "le"),
            row("4", "café", misc="SpaceAfter=No"),
            row("5", "."),
        ),
        sentence("# text = Zum Haus", row("1-2", "Zum"), row("1", "Zu"), row("2", "dem"),
                 row("3", "Haus")),
    )  # fmt: skip
    assert located(dataset, 0) == ["Retour", "du", "du", "café", "."]
    assert located(dataset, 1) == ["Zu", "Zum", "Haus"]


def test_empty_nodes_are_left_out(tmp_path: Path) -> None:
    dataset = read(
        tmp_path,
        sentence(row("0.1", "ghost"), row("1", "a"), row("1.1", "ghost"), row("2", "b")),
    )
    assert dataset.table.column("words").to_pylist() == [["a", "b"]]


def test_spaces_inside_words_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "odd.conllu"
    content = sentence("# text = 10 000 km", row("1", "10 000"), row("2", "km"))
    path.write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    dataset = read_dataset(path)
    assert located(dataset, 0) == ["10 000", "km"]


def test_no_blank_line_at_the_end_and_several_between(tmp_path: Path) -> None:
    dataset = read(tmp_path, FIRST, "\n\n", FIRST.rstrip("\n"))
    assert dataset.n_examples == 2


def test_limit_and_joined_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.conllu").write_text(FIRST + sentence(row("1", name)))
    source = f"{tmp_path}/a.conllu,{tmp_path}/b.conllu"
    dataset = read_dataset(source)
    assert dataset.texts() == ["She didn't.", "a", "She didn't.", "b"]
    assert [len(located(dataset, e)) for e in range(4)] == [4, 1, 4, 1]
    dataset = read_dataset(source, limit=3)
    assert dataset.texts() == ["She didn't.", "a", "She didn't."]
    assert dataset.word_spans is not None
    assert len(dataset.word_spans) == 3


def test_words_of_another_column_are_located_anew(tmp_path: Path) -> None:
    path = tmp_path / "some.conllu"
    path.write_text(sentence("# text = a-b", row("1", "a-b", "a", "X")))
    dataset = read_dataset(path, words_column="lemma")
    assert located(dataset, 0) == ["a"]


@pytest.mark.parametrize(
    ("sentences", "fragments"),
    [
        ([FIRST, sentence("1\tShe\tshe")], ["line 10 ", "3 columns", "10"]),
        ([FIRST, sentence("# text = a", row("1", "a", "a", "X", "_", "_", "two"))],
         ["line 11:", "head", "'two'", "correct"]),
        ([sentence(row("x", "a"))], ["line 1:", "id", "'x'"]),
        ([FIRST, sentence("# text = a c", row("1", "a"), row("2", "b"))],
         ["line 10:", "token 2 'b'", "remove the '# text' line"]),
        ([sentence(row("1", "a"), row("3", "b"))], ["line 1:", "'b'", "numbered 3, expected 2"]),
        ([sentence(row("1", "a"), row("1", "b"))], ["numbered 1, expected 2", "blank line"]),
        ([sentence(row("1-2", "ab"), row("1", "a"))], ["line 1:", "ends before its last word"]),
        ([sentence(row("1-3", "abc"), row("1", "a"), row("2-3", "bc"), row("2", "b"))],
         ["'bc'", "expected 2"]),
        (["# newdoc\n"], ["has no examples"]),
    ],
)  # fmt: skip
def test_errors_name_the_line(tmp_path: Path, sentences: list[str], fragments: list[str]) -> None:
    message = fails(tmp_path, *sentences)
    assert str(tmp_path / "some.conllu") in message
    for fragment in fragments:
        assert fragment in message


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.conllu"
    path.write_bytes(sentence(row("1", "a"), row("2", "é")).encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin\.conllu: line 2 is not UTF-8"):
        read_dataset(path)


@given(
    st.lists(
        st.tuples(st.text("abcé漢", min_size=1, max_size=4), st.booleans()), min_size=1, max_size=8
    )
)
def test_rebuilt_texts_give_back_every_form(
    tmp_path_factory: pytest.TempPathFactory, words: list[tuple[str, bool]]
) -> None:
    lines = [
        row(str(number), form, misc="_" if space else "SpaceAfter=No")
        for number, (form, space) in enumerate(words, start=1)
    ]
    dataset = read(tmp_path_factory.mktemp("made"), sentence(*lines))
    assert located(dataset, 0) == [form for form, _ in words]
    assert dataset.texts()[0].count(" ") == sum(space for _, space in words[:-1])


@pytest.mark.shared
@pytest.mark.skipif(not EWT.exists(), reason="the English Web Treebank is not beside the checkout")
def test_english_web_treebank() -> None:
    dataset = read_dataset(EWT)
    table = dataset.table
    content = EWT.read_text("utf-8").split("\n")
    assert dataset.n_examples == 2001 == sum(line.startswith("# sent_id") for line in content)
    assert dataset.texts() == [line[9:] for line in content if line.startswith("# text = ")]
    forms = [line.split("\t")[1] for line in content if line.split("\t")[0].isdigit()]
    words = table.column("words").to_pylist()
    assert [word for one in words for word in one] == forms
    documents = {line for line in content if line.startswith("# newdoc id")}
    assert len(table.column("doc").unique()) == len(documents)
    assert table.column("doc").null_count == 0
    for name in ("lemma", "upos", "head", "deprel"):
        column = table.column(name).to_pylist()
        assert [len(one) for one in column] == [len(one) for one in words]
    assert len({tag for one in table.column("upos").to_pylist() for tag in one}) == 17

    n_own = n_whole = 0
    for example, one in enumerate(words):
        for word, text in zip(one, located(dataset, example), strict=True):
            n_own += word == text
            n_whole += word != text
    assert n_own + n_whole == len(forms)
    # Only parts of contractions that are written otherwise ("wanna": want to) get the whole.
    assert n_whole < 0.005 * len(forms)
