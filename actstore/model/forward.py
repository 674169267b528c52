"""From token ids to rows: the packed forward pass, and the plain one it must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from actstore.errors import ActstoreError, InputError, UnsupportedModelError
from actstore.model.architecture import Family, ModelInfo, hidden_state_index
from actstore.model.attention import packed_attention_of, text_groups
from actstore.model.hooks import Recorder, find_taps
from actstore.model.loading import load_model
from actstore.model.packing import MIN_ROWS, Pack, make_packs
from actstore.model.selftest import check_rows, self_test_ids, self_test_sites
from actstore.model.source import first_line, quiet
from actstore.site import Site

__all__ = ["Extractor", "Sink", "plain_forward"]

Int64 = npt.NDArray[np.int64]
Ids = Sequence[npt.NDArray[np.integer]]
Sink = Callable[[Site, Tensor, Int64], None]


class Extractor:
    """One loaded model that turns token ids into rows.

    Families on the packing list run many texts in one pass, each seeing itself alone; others run
    one text at a time. Set torch's threads to 1 for rows whose bits do not depend on the pack.
    """

    def __init__(
        self, info: ModelInfo, sites: tuple[Site, ...], model: PreTrainedModel, family: Family
    ) -> None:
        self.info = info
        self.sites = sites
        self._model: PreTrainedModel | None = model
        self._family = family
        embeddings = model.get_input_embeddings().weight
        assert isinstance(embeddings, Tensor)
        self._vocabulary = len(embeddings)
        find_taps(model, family, sites)

    @classmethod
    def load(
        cls,
        info: ModelInfo,
        sites: tuple[Site, ...],
        *,
        dtype: str = "float32",
        device: str = "cpu",
        trust_remote_code: bool = False,
        self_test: bool = True,
    ) -> Extractor:
        """Load the weights and, with `self_test`, check the rows of random texts.

        `dtype` is float32, bfloat16, float16 or auto (`info.native_dtype`). UnsupportedModelError
        if the hook points are not found or the rows are not those of the plain forward pass.
        """
        model, family = load_model(
            info, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        extractor = cls(info, sites, model, family)
        if self_test:
            extractor._self_test()
        return extractor

    @property
    def model(self) -> PreTrainedModel:
        assert self._model is not None, "the extractor is closed"
        return self._model

    @property
    def dtype(self) -> str:
        """The dtype of rows: float32, bfloat16 or float16."""
        return str(self.model.dtype).removeprefix("torch.")

    def close(self) -> None:
        """Let go of the weights; the extractor cannot be used again."""
        self._model = None

    @torch.inference_mode()
    def run(
        self,
        ids: Ids,
        sink: Sink,
        *,
        pack_tokens: int = 2048,
        sites: tuple[Site, ...] | None = None,
    ) -> None:
        """Compute every text's rows at the given sites (default: those of the extractor).

        `ids` are the token ids of many texts, some perhaps empty. For each pack and site, in the
        order of the forward pass, calls `sink(site, rows, source_rows)`: `rows`
        [n, d_model] in the model's dtype and on its device, valid during the call only;
        `source_rows` [n], the rows' numbers in the concatenation of `ids`. The packs depend on
        the lengths of the texts and on `pack_tokens` alone. An exception from the sink ends the
        run and leaves the extractor usable. InputError for a text longer than the model takes or
        an id it does not know.
        """
        lengths = self._check(ids, pack_tokens)
        starts = np.cumsum(lengths) - lengths
        packed = self.info.packed
        packs = make_packs(
            lengths,
            max_rows=pack_tokens if packed else 1,
            min_rows=MIN_ROWS if packed else 0,
            max_length=self.info.max_length,
        )
        pack: Pack
        source: Int64

        def receive(site: Site, x: Tensor) -> None:
            if x.shape != (1, pack.n_rows, self.info.d_model):
                raise UnsupportedModelError(
                    f"site {site} of {self.info.model_id!r} has shape {tuple(x.shape)} where "
                    f"(1, {pack.n_rows}, {self.info.d_model}) was expected"
                )
            sink(site, x[0, : pack.n_text_rows], source)

        taps = find_taps(self.model, self._family, sites or self.sites)
        attention = packed_attention_of(self.model) if packed else nullcontext()
        with quiet(), attention, Recorder(taps, receive) as recorder:
            for pack in packs:
                source = np.concatenate(
                    [np.arange(starts[t], starts[t] + lengths[t]) for t in pack.texts]
                )
                self._forward(recorder, pack, [ids[t] for t in pack.texts])

    def _forward(self, recorder: Recorder, pack: Pack, ids: Ids) -> None:
        tokens = np.zeros(pack.n_rows, np.int64)
        np.concatenate(ids, out=tokens[: pack.n_text_rows], casting="same_kind")
        inputs = {"input_ids": self._tensor(tokens)}
        if self.info.packed:
            positions = [np.tile(np.arange(g.length), g.count) for g in pack.groups]
            inputs["position_ids"] = self._tensor(np.concatenate(positions))
            for name in self._family.zero_inputs:
                inputs[name] = torch.zeros_like(inputs["input_ids"])
        with text_groups(pack.groups):
            recorder.forward(self.model, **inputs)

    def _tensor(self, values: Int64) -> Tensor:
        return torch.from_numpy(values)[None].to(self.model.device)

    def _check(self, ids: Ids, pack_tokens: int) -> Int64:
        if pack_tokens < 1:
            raise InputError(f"pack_tokens must be at least 1, not {pack_tokens}")
        lengths = np.fromiter((len(text) for text in ids), np.int64, len(ids))
        limit = self.info.max_length
        if limit is not None and len(lengths) and lengths.max() > limit:
            at = int(np.argmax(lengths > limit))
            raise InputError(
                f"text {at} has {lengths[at]} tokens, but {self.info.model_id!r} takes at most "
                f"{limit}: tokenize with --max-length {limit} or less"
            )
        flat = np.concatenate([np.empty(0, np.int64), *ids])
        bad = np.flatnonzero((flat < 0) | (flat >= self._vocabulary))
        if len(bad):
            at = int(np.searchsorted(np.cumsum(lengths), bad[0], side="right"))
            raise InputError(
                f"text {at} has token id {flat[bad[0]]}, but {self.info.model_id!r} knows 0 to "
                f"{self._vocabulary - 1}: its tokenizer does not belong to this model"
            )
        return lengths

    def _self_test(self) -> None:
        """Compare the packed, hooked, early-stopped rows with the plain ones on random texts."""
        sites = self_test_sites(self.info, self.sites)
        ids = self_test_ids(self.info, self._vocabulary)
        shape = (sum(len(text) for text in ids), self.info.d_model)
        rows = {site: np.full(shape, np.nan, np.float32) for site in sites}

        def sink(site: Site, x: Tensor, source: Int64) -> None:
            rows[site][source] = x.float().cpu().numpy()

        try:
            expected = plain_forward(self, ids, sites)
            self.run(ids, sink, pack_tokens=48, sites=sites)
        except (ActstoreError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{self.info.model_id!r} ({self.info.model_type}) cannot run on plain token ids: "
                f"{first_line(error)}"
            ) from error
        check_rows(self.info, self.dtype, rows, expected)


@torch.inference_mode()
def plain_forward(
    extractor: Extractor, ids: Ids, sites: tuple[Site, ...] | None = None
) -> dict[Site, npt.NDArray[np.float32]]:
    """The rows by definition: each text alone, unpadded, through the whole model as it is.

    Shares no batching, attention or stopping with `Extractor.run`. Sites that are among the
    model's `hidden_states` are read from there, only the others by hooks. Returns for each site
    float32 [sum of lengths, d_model] in the order of `ids`.
    """
    wanted = sites or extractor.sites
    model, info = extractor.model, extractor.info
    index = {site: hidden_state_index(info, site) for site in wanted}
    hooked = tuple(site for site, at in index.items() if at is None)
    rows: dict[Site, list[Tensor]] = {site: [] for site in wanted}

    def receive(site: Site, x: Tensor) -> None:
        rows[site].append(x[0].float().cpu())

    taps = find_taps(model, extractor._family, hooked)
    with quiet(), Recorder(taps, receive, early_exit=False) as recorder:
        for text in ids:
            if len(text) == 0:
                continue
            tokens = torch.from_numpy(np.asarray(text, np.int64))[None].to(model.device)
            output = recorder.forward(model, input_ids=tokens, output_hidden_states=True)
            for site, at in index.items():
                if at is not None:
                    receive(site, output.hidden_states[at])
    return {
        site: torch.cat(parts).numpy() if parts else np.empty((0, info.d_model), np.float32)
        for site, parts in rows.items()
    }
