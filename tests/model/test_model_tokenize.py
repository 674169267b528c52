"""Texts to token tables: specials, offsets in code points, truncation, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import minilm_folder
from tiny_models import SENTENCES, Kind, make_tiny_tokenizer

from actstore.errors import InputError, UnsupportedModelError
from actstore.model import tokenize as tokenize_module
from actstore.model.tokenize import Tokenizer
from actstore.tokens import TokenTable

KINDS: tuple[Kind, ...] = ("gpt2", "llama", "bert")
# Characters of one to four bytes, a joined emoji, a combining accent, a wide space.
HARD = "naïve café 🙂👩‍🚀 e\u0301 中文\u3000x"
texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)


def make(kind: Kind) -> Tokenizer:
    return Tokenizer(make_tiny_tokenizer(kind).backend_tokenizer)


def check_table(table: TokenTable, n_examples: int) -> None:
    assert table.n_examples == n_examples
    assert table.offsets[0] == 0
    assert table.offsets[-1] == table.n_tokens == len(table.special)
    assert (np.diff(table.offsets) >= 0).all()
    assert table.char_start.shape == table.char_end.shape == (table.n_tokens,)
    assert [table.ids.dtype, table.char_start.dtype, table.char_end.dtype] == [np.int32] * 3
    assert (table.offsets.dtype, table.special.dtype) == (np.int64, np.bool_)
    assert table.n_cut.dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_transformers(kind: Kind) -> None:
    table = make(kind).tokenize([*SENTENCES, ""], max_length=None)
    check_table(table, len(SENTENCES) + 1)
    reference = make_tiny_tokenizer(kind)
    for example, text in enumerate([*SENTENCES, ""]):
        begin, end = table.offsets[example : example + 2]
        expected = reference(text, return_special_tokens_mask=True, return_offsets_mapping=True)
        assert table.ids[begin:end].tolist() == expected["input_ids"]
        assert table.special[begin:end].tolist() == [
            bool(s) for s in expected["special_tokens_mask"]
        ]
        spans = list(zip(table.char_start[begin:end], table.char_end[begin:end], strict=True))
        assert spans == expected["offset_mapping"]
    assert not table.n_cut.any()


def test_special_tokens_of_each_kind() -> None:
    for kind, special, empty in (("gpt2", [], 0), ("llama", [0], 1), ("bert", [0, -1], 2)):
        tokenizer = make(kind)
        table = tokenizer.tokenize([SENTENCES[0], ""], max_length=None)
        expected = np.zeros(table.offsets[1], bool)
        expected[special] = True
        assert table.special[: table.offsets[1]].tolist() == expected.tolist()
        assert np.diff(table.offsets)[1] == empty == tokenizer.n_special
        assert not table.char_end[table.special].any()


def test_a_special_token_written_out_in_the_text_is_content() -> None:
    table = make("bert").tokenize(["fox [SEP] dog"], max_length=None)
    (inside,) = np.flatnonzero((table.ids == table.ids[-1]) & ~table.special)
    assert (table.char_start[inside], table.char_end[inside]) == (4, 9)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_offsets_count_code_points(kind: Kind) -> None:
    table = make(kind).tokenize([HARD], max_length=None)
    content = ~table.special
    covered = {
        HARD[start:end]
        for start, end in zip(table.char_start[content], table.char_end[content], strict=True)
    }
    assert {"ï", "🙂", "中", "文", "\u0301", "👩", "\u200d", "🚀", "x"} <= covered
    assert table.char_end.max() == len(HARD)


@settings(deadline=None, max_examples=60)
@given(st.lists(texts, max_size=5))
def test_byte_level_offsets_cover_the_text_in_order(examples: list[str]) -> None:
    table = make("gpt2").tokenize(examples, max_length=None)
    check_table(table, len(examples))
    for example, text in enumerate(examples):
        begin, end = table.offsets[example : example + 2]
        starts, ends = table.char_start[begin:end], table.char_end[begin:end]
        assert (starts < ends).all()
        assert (np.diff(starts) >= 0).all()
        covered = {at for s, e in zip(starts, ends, strict=True) for at in range(s, e)}
        assert covered == set(range(len(text)))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*SENTENCES, HARD, "", "a"]), max_size=4), st.integers(3, 40))
@pytest.mark.parametrize("kind", KINDS)
def test_cut_tokens_are_counted(kind: Kind, examples: list[str], limit: int) -> None:
    tokenizer = make(kind)
    whole = tokenizer.tokenize(examples, max_length=None)
    cut = tokenizer.tokenize(examples, max_length=limit)
    check_table(cut, len(examples))
    whole_lengths, lengths = np.diff(whole.offsets), np.diff(cut.offsets)
    assert (lengths == np.minimum(whole_lengths, limit)).all()
    assert (cut.n_cut == whole_lengths - lengths).all()
    for example in range(len(examples)):
        kept = slice(*cut.offsets[example : example + 2])
        full = slice(*whole.offsets[example : example + 2])
        n = int(np.count_nonzero(~cut.special[kept]))
        for column in ("ids", "char_start", "char_end"):
            left = getattr(cut, column)[kept][~cut.special[kept]]
            right = getattr(whole, column)[full][~whole.special[full]][:n]
            assert (left == right).all()
        assert cut.special[kept].sum() == whole.special[full].sum()


def test_a_limit_does_not_outlive_its_call() -> None:
    tokenizer = make("llama")
    before = tokenizer.digest
    assert tokenizer.tokenize(SENTENCES, max_length=5).n_truncated == len(SENTENCES)
    assert tokenizer.tokenize(SENTENCES, max_length=None).n_truncated == 0
    assert make("llama").digest == before


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_limit_without_room_for_text_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match="use at least 3"):
        make("bert").tokenize(["a"], max_length=limit)
    assert make("bert").tokenize(["a b c"], max_length=3).n_tokens == 3


def test_slices_join_to_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [*SENTENCES, "", HARD] * 3
    whole = make("llama").tokenize(examples, max_length=9)
    monkeypatch.setattr(tokenize_module, "_SLICE", 4)
    done: list[int] = []
    sliced = make("llama").tokenize(examples, max_length=9, progress=done.append)
    assert done == [4, 8, 12, 16, 20, 21]
    for column in ("ids", "offsets", "special", "char_start", "char_end", "n_cut"):
        assert (getattr(sliced, column) == getattr(whole, column)).all()


def test_no_texts_give_an_empty_table() -> None:
    check_table(make("llama").tokenize([], max_length=5), 0)
    table = make("gpt2").tokenize(["", ""], max_length=5)
    assert table.offsets.tolist() == [0, 0, 0]


def test_text_that_is_not_unicode_is_named() -> None:
    with pytest.raises(InputError, match=r"text 1 .* at character 2: .*'\\udc80'"):
        make("gpt2").tokenize(["fine", "no\udc80"], max_length=None)


def test_digest_tells_tokenizers_apart(tmp_path: Path) -> None:
    digests = {make(kind).digest for kind in KINDS}
    assert len(digests) == len(KINDS)
    make_tiny_tokenizer("bert").save_pretrained(tmp_path)
    assert Tokenizer.load(str(tmp_path)).digest == make("bert").digest


def test_truncation_saved_with_the_tokenizer_does_not_count(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer("bert")
    plain = Tokenizer(tokenizer.backend_tokenizer).digest
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=12)
    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.load(str(tmp_path))
    assert loaded.digest == plain
    table = loaded.tokenize(["the quick brown fox", "a"], max_length=None)
    assert (
        table.n_tokens
        == make("bert").tokenize(["the quick brown fox", "a"], max_length=None).n_tokens
    )


def test_slow_and_absent_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot load the tokenizer") as caught:
        Tokenizer.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"only a slow tokenizer \(ByT5Tokenizer\)"):
        Tokenizer.load(str(tmp_path))


def test_long_text_prints_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.load(minilm_folder())
    table = tokenizer.tokenize(["word " * 2000], max_length=512)
    assert (table.n_tokens, table.n_cut.tolist()) == (512, [2000 - 510])
    assert tokenizer.tokenize(["word " * 2000], max_length=None).n_tokens == 2002
    assert capfd.readouterr() == ("", "")
