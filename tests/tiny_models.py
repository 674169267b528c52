"""Tiny random models with real tokenizers, saved as ordinary model folders.

`make_tiny_model("gpt2", tmp_path / "m")` takes well under a second and needs no network. The
initial weights are ten times larger than usual, so that attention, position and order matter and
a leak or a wrong position shows in every row.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers.utils import logging as transformers_logging

Kind = Literal["gpt2", "llama", "bert", "opt"]
KINDS: tuple[Kind, ...] = ("gpt2", "llama", "bert", "opt")
MAX_LENGTH = 128  # positions of every tiny model; the llama tokenizer states no limit of its own

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A store of activations is extracted once and probed ten thousand times.",
    "Numbers are right, or they are nothing; nobody reads a wrong table twice.",
    "In the house by the river, three old friends were talking about the weather.",
    "She sells sea shells, he reads long books, and they never met before today.",
)


@lru_cache
def _tokenizer_json(kind: Kind) -> str:
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=200,
            special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            show_progress=False,
        )
        tokenizer.train_from_iterator(SENTENCES, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer.to_str()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos = {"gpt2": "<|endoftext|>", "llama": "<s>", "opt": "</s>"}[kind]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[bos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind != "gpt2":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer.to_str()


def make_tiny_tokenizer(kind: Kind) -> transformers.PreTrainedTokenizerFast:
    """gpt2: no special tokens added and no pad token; llama and opt: BOS first; bert: [CLS] x
    [SEP]. All but bert are byte-level, so they take any text."""
    options: dict[str, object] = {
        "gpt2": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
        "llama": {"bos_token": "<s>"},
        "opt": {"bos_token": "</s>", "eos_token": "</s>"},
        "bert": {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
    }[kind]
    limit = {} if kind == "llama" else {"model_max_length": MAX_LENGTH}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(kind)), **options, **limit
    )


def tiny_config(
    kind: Kind, *, vocab_size: int, n_blocks: int = 3, d_model: int = 48
) -> transformers.PreTrainedConfig:
    shared = {
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "num_hidden_layers": n_blocks,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if kind == "gpt2":
        return transformers.GPT2Config(**shared)
    if kind == "llama":
        return transformers.LlamaConfig(
            **shared, num_key_value_heads=2, intermediate_size=2 * d_model
        )
    if kind == "opt":
        # OPT's config has another name for the standard deviation of its initial weights.
        return transformers.OPTConfig(
            **(shared | {"pad_token_id": 1}),
            init_std=0.2,
            ffn_dim=2 * d_model,
            word_embed_proj_dim=d_model,
        )
    return transformers.BertConfig(
        **(shared | {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}),
        intermediate_size=2 * d_model,
    )


MODEL_CLASSES = {
    "gpt2": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
    "opt": transformers.OPTForCausalLM,
    "bert": transformers.BertModel,
}


def make_tiny_model(
    kind: Kind, folder: Path, *, seed: int = 0, n_blocks: int = 3, d_model: int = 48
) -> Path:
    """Save a random model and its tokenizer to `folder` and return the folder.

    Decoders are saved with their language model head, as they are on the hub; the heads (4) and
    key-value heads (llama: 2) are fixed, so `d_model` must be a multiple of 8.
    """
    tokenizer = make_tiny_tokenizer(kind)
    config = tiny_config(kind, vocab_size=len(tokenizer), n_blocks=n_blocks, d_model=d_model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODEL_CLASSES[kind](config)
        # Ones and zeros in norms and biases would hide a norm left out or applied twice.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    save_quietly(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_quietly(model: transformers.PreTrainedModel, folder: Path) -> None:
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        transformers_logging.enable_progress_bar()
