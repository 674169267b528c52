"""Texts to token tables, with the model's own fast tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import tokenizers
from transformers import AutoTokenizer

from actstore.errors import InputError, UnsupportedModelError
from actstore.model.source import load_errors, locate, quiet
from actstore.tokens import TokenTable

__all__ = ["Tokenizer"]

# Texts handed to the tokenizer at once: enough to feed its threads, few enough that its
# encodings, far larger than the table's arrays, never pile up.
_SLICE = 2000


class Tokenizer:
    """A fast tokenizer, with special tokens on and without padding.

    `digest` is the hex blake2b of the tokenizer's JSON, `n_special` how many special tokens it
    adds to a text.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.digest = hashlib.blake2b(backend.to_str().encode(), digest_size=16).hexdigest()
        self.n_special: int = backend.num_special_tokens_to_add(False)

    @classmethod
    def load(
        cls, model_id: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> Tokenizer:
        """Load the tokenizer of a model folder or hub id.

        InputError if there is none; UnsupportedModelError if it is a slow one, which cannot say
        which characters a token covers.
        """
        where = locate(model_id, revision)
        with quiet(), load_errors(model_id, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(
                model_id, trust_remote_code=trust_remote_code, **where
            )
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"{model_id!r} has only a slow tokenizer ({type(tokenizer).__name__}), which gives "
                "no character offsets: use a model that has a tokenizer.json"
            )
        # A copy: the truncation set below must not reach other users of this tokenizer.
        return cls(tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None,
        progress: Callable[[int], None] | None = None,
    ) -> TokenTable:
        """Tokenise every text into at most `max_length` tokens, special ones included.

        Tokens past the limit are dropped and counted in `n_cut`. `progress` is called with the
        number of texts done so far. InputError names a text that is not valid Unicode.
        """
        if max_length is None:
            self._backend.no_truncation()
        elif max_length <= self.n_special:
            raise InputError(
                f"max_length {max_length} leaves no room for text: this tokenizer adds "
                f"{self.n_special} special tokens, so use at least {self.n_special + 1}"
            )
        else:
            self._backend.enable_truncation(max_length)
        parts = []
        for begin in range(0, len(texts), _SLICE):
            parts.append(_arrays(self._encode(texts[begin : begin + _SLICE], begin)))
            if progress is not None:
                progress(min(begin + _SLICE, len(texts)))
        parts = parts or [_arrays([])]
        ids, special, spans, lengths, n_cut = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        return TokenTable(
            ids=ids,
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            special=special,
            char_start=np.where(special, np.int32(0), spans[:, 0]),
            char_end=np.where(special, np.int32(0), spans[:, 1]),
            n_cut=n_cut,
        )

    def _encode(self, texts: Sequence[str], begin: int) -> list[tokenizers.Encoding]:
        try:
            return self._backend.encode_batch(list(texts))
        except (TypeError, UnicodeEncodeError) as error:
            for at, text in enumerate(texts, begin):
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError as bad:
                    raise InputError(
                        f"text {at} (counted from 0) is not valid Unicode at character "
                        f"{bad.start}: remove the lone surrogate {text[bad.start]!a}"
                    ) from error
            raise


def _arrays(encodings: list[tokenizers.Encoding]) -> tuple[np.ndarray, ...]:
    """ids int32 [n], special bool [n], spans int32 [n, 2], lengths int64 [e], n_cut int32 [e]."""
    lengths = np.array([len(one.ids) for one in encodings], np.int64)
    n = int(lengths.sum())
    flat = chain.from_iterable
    return (
        np.fromiter(flat(one.ids for one in encodings), np.int32, n),
        np.fromiter(flat(one.special_tokens_mask for one in encodings), np.bool_, n),
        np.fromiter(flat(flat(one.offsets for one in encodings)), np.int32, 2 * n).reshape(n, 2),
        lengths,
        np.array([_n_cut(one) for one in encodings], np.int32),
    )


def _n_cut(encoding: tokenizers.Encoding) -> int:
    return sum(len(part.ids) - sum(part.special_tokens_mask) for part in encoding.overflowing)
