"""`actstore predict`: apply a saved probe to new texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actstore.app.console import print_json, print_table
from actstore.config import PredictRun
from actstore.errors import InputError
from actstore.model.forward import Extractor
from actstore.model.loading import describe_model, weights_digest
from actstore.model.tokenize import Tokenizer
from actstore.pooling import pool_rows
from actstore.probes.attention import AttentionFit
from actstore.probes.files import load_probe
from actstore.site import Site
from actstore.tokens import TokenMask, make_mask

__all__ = ["Prediction", "predict", "run"]

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of one text, or of one word of it."""

    text: str
    word: str | None
    probabilities: dict[str, float]

    @property
    def best(self) -> tuple[str, float]:
        return max(self.probabilities.items(), key=lambda item: item[1])


def run(run: PredictRun) -> int:
    """Carry out the command; the exit code."""
    predictions = predict(Path(run.probe), list(run.text))
    if run.json:
        print_json(
            [
                {
                    "text": p.text,
                    "word": p.word,
                    "label": p.best[0],
                    "probabilities": p.probabilities,
                }
                for p in predictions
            ]
        )
        return 0
    rows = [
        (p.text if p.word is None else p.word, p.best[0], f"{p.best[1]:.3f}") for p in predictions
    ]
    unit = "text" if predictions[0].word is None else "word"
    print_table((unit, "label", "probability"), rows)
    return 0


def predict(probe: Path, texts: list[str]) -> list[Prediction]:
    """Run the probe's model over `texts` and apply the probe.

    Raises InputError if the model found under the probe's model name is another one, or a text
    has no token that the probe could see.
    """
    fit, metadata = load_probe(probe)
    rows, mask = _rows(texts, metadata)
    classes = [str(name) for name in metadata["classes"]]
    if isinstance(fit, AttentionFit):
        proba = fit.predict_proba(rows, mask.offsets)
    elif mask.name == "words":
        proba = fit.predict_proba(rows)
    else:
        proba = fit.predict_proba(pool_rows(rows, mask.offsets, str(metadata["pool"])))
    owners: list[tuple[str, str | None]] = [(text, None) for text in texts]
    if mask.name == "words":
        assert mask.items is not None
        words = [_WORD.findall(text) for text in texts]
        example = np.repeat(np.arange(len(texts)), mask.lengths)
        owners = [
            (texts[e], words[e][i]) for e, i in zip(example, mask.items.tolist(), strict=True)
        ]
    return [
        Prediction(text, word, dict(zip(classes, map(float, row), strict=True)))
        for (text, word), row in zip(owners, proba, strict=True)
    ]


def _rows(
    texts: list[str], metadata: Mapping[str, Any]
) -> tuple[npt.NDArray[np.float32], TokenMask]:
    """The rows that the probe sees: its site, under its mask."""
    model, revision = str(metadata["model"]), metadata["revision"]
    info = describe_model(model, revision=revision)
    if weights_digest(model, revision=revision) != metadata["weights_digest"]:
        raise InputError(
            f"the model at {model!r} is not the one this probe was fitted on (its weights differ)"
        )
    tokens = Tokenizer.load(model, revision=revision).tokenize(
        texts, max_length=metadata["max_length"]
    )
    spans = [
        (
            np.array([m.start() for m in _WORD.finditer(text)], np.int32),
            np.array([m.end() for m in _WORD.finditer(text)], np.int32),
        )
        for text in texts
    ]
    mask = make_mask(str(metadata["mask"]), tokens, spans)
    if not mask.lengths.all():
        empty = int(np.flatnonzero(mask.lengths == 0)[0])
        raise InputError(f"text {empty + 1} ({texts[empty]!r}) has no token under {mask.name}")
    site = Site.parse(str(metadata["site"]))
    extractor = Extractor.load(info, (site,), dtype=str(metadata["dtype"]), self_test=False)
    ids = [tokens.ids[a:b] for a, b in pairwise(tokens.offsets)]
    every = np.empty((tokens.n_tokens, info.d_model), np.float32)

    def sink(_: Site, rows: Any, source: npt.NDArray[np.int64]) -> None:
        every[source] = rows.float().cpu().numpy()

    extractor.run(ids, sink)
    return every[mask.rows], mask
