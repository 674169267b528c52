"""The generic resolver: families without a row in the architecture table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import save_quietly, tiny_config

from actstore.errors import UnsupportedModelError
from actstore.model.architecture import resolve_sites
from actstore.model.forward import Extractor
from actstore.model.loading import describe_model
from actstore.model.resolver import family_of

_SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.parametrize(
    ("config", "blocks", "final_norm"),
    [
        (transformers.GPTNeoXConfig(**_SIZES), "layers", "final_layer_norm"),
        (transformers.MistralConfig(**_SIZES, num_key_value_heads=1), "layers", "norm"),
        (transformers.Gemma2Config(**_SIZES, num_key_value_heads=1), "layers", "norm"),
        (transformers.RobertaConfig(**_SIZES), "encoder.layer", None),
        (transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2), None, None),
        (transformers.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2), "h", "ln_f"),
        (
            tiny_config("opt", vocab_size=50, n_blocks=2),
            "decoder.layers",
            "decoder.final_layer_norm",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_blocks_and_final_norm_are_found(config: Any, blocks: str | None, final_norm: str) -> None:
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    family = family_of(config.model_type, model, 2)
    assert family.blocks == (blocks or "transformer.layer")
    assert family.final_norm == final_norm
    assert not family.packed


def test_a_wrong_number_of_blocks_is_refused() -> None:
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(tiny_config("opt", vocab_size=50, n_blocks=2))
    with pytest.raises(UnsupportedModelError, match="expected one list of 3 blocks"):
        family_of("opt", model, 3)


def test_two_norms_after_the_blocks_are_refused() -> None:
    model = torch.nn.Module()
    model.h = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    model.norm_a, model.norm_b = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)
    with pytest.raises(UnsupportedModelError, match=r"several norms .*norm_a, norm_b"):
        family_of("homemade", model, 2)
    model.norm_b = torch.nn.Identity()
    assert family_of("homemade", model, 2).final_norm == "norm_a"


def test_a_projection_after_the_blocks_is_refused_at_load(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=32,
        word_embed_proj_dim=8,
        do_layer_norm_before=False,
    )
    save_quietly(transformers.OPTModel(config), tmp_path)
    info = describe_model(str(tmp_path))
    with pytest.raises(UnsupportedModelError, match="8 wide in hidden_states, not 16"):
        Extractor.load(info, resolve_sites(info))
