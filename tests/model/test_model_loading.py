"""Reading a model's facts and weights, and every way in which that can go wrong."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub.constants
import pytest
import torch
import transformers
from model_helpers import minilm_folder
from safetensors.torch import load_file, save_file
from tiny_models import MAX_LENGTH, make_tiny_model
from transformers.utils import logging as engine_logging

from actstore.errors import ActstoreError, InputError, ResourceError, UnsupportedModelError
from actstore.model.architecture import FAMILIES
from actstore.model.loading import describe_model, load_model, weights_digest
from actstore.model.source import quiet
from actstore.model.tokenize import Tokenizer


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return make_tiny_model("gpt2", tmp_path / "gpt2")


# --- facts -------------------------------------------------------------------------------------


def test_facts_of_each_family(tmp_path: Path) -> None:
    facts = {kind: describe_model(str(make_tiny_model(kind, tmp_path / kind))) for kind in FAMILIES}
    for kind, info in facts.items():
        assert (info.model_type, info.n_blocks, info.d_model) == (kind, 3, 48)
        assert info.packed
        assert info.revision is None
        assert info.max_length == MAX_LENGTH
        assert info.native_dtype == "float32"
        assert {"attn_out", "resid_mid", "mlp_out"} < set(info.points)
    assert facts["llama"].architecture == "LlamaForCausalLM"
    assert [facts[kind].has_final_norm for kind in ("gpt2", "llama", "bert")] == [True, True, False]


def test_facts_of_an_unknown_family_come_from_its_modules(tmp_path: Path) -> None:
    info = describe_model(str(make_tiny_model("opt", tmp_path / "opt")))
    assert info.points == ("embed", "resid_pre", "resid_post", "final_norm")
    assert not info.packed


def test_facts_of_the_trained_model() -> None:
    info = describe_model(minilm_folder())
    assert (info.n_blocks, info.d_model, info.max_length) == (6, 384, 512)
    assert info.architecture == "BertModel"
    assert not info.has_final_norm


def test_the_shorter_limit_of_model_and_tokenizer_counts(gpt2: Path) -> None:
    edit_json(gpt2 / "tokenizer_config.json", model_max_length=50)
    assert describe_model(str(gpt2)).max_length == 50
    edit_json(gpt2 / "tokenizer_config.json", model_max_length=10**30)
    assert describe_model(str(gpt2)).max_length == MAX_LENGTH
    (gpt2 / "tokenizer_config.json").unlink()
    assert describe_model(str(gpt2)).max_length == MAX_LENGTH


def test_native_dtype_is_that_of_the_checkpoint(gpt2: Path) -> None:
    edit_json(gpt2 / "config.json", dtype="bfloat16")
    assert describe_model(str(gpt2)).native_dtype == "bfloat16"
    edit_json(gpt2 / "config.json", dtype="float64")
    assert describe_model(str(gpt2)).native_dtype == "float32"


def test_config_digest_follows_the_model_only(gpt2: Path) -> None:
    before = describe_model(str(gpt2)).config_digest
    edit_json(gpt2 / "config.json", transformers_version="9.9", _name_or_path="elsewhere")
    assert describe_model(str(gpt2)).config_digest == before
    edit_json(gpt2 / "config.json", layer_norm_epsilon=1e-3)
    assert describe_model(str(gpt2)).config_digest != before


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_frequencies_that_depend_on_the_batch_forbid_packing(
    tmp_path: Path, kind: str
) -> None:
    folder = make_tiny_model("llama", tmp_path / "llama")
    assert describe_model(str(folder)).packed
    rope: dict[str, object] = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
        rope |= {"original_max_position_embeddings": MAX_LENGTH}
    edit_json(folder / "config.json", rope_parameters=rope)
    assert not describe_model(str(folder)).packed


def test_describing_reads_no_weights(tmp_path: Path) -> None:
    for kind in ("gpt2", "opt"):
        folder = make_tiny_model(kind, tmp_path / kind)
        (folder / "model.safetensors").unlink()
        assert describe_model(str(folder)).n_blocks == 3


# --- weights -----------------------------------------------------------------------------------


def test_auto_dtype_is_the_native_one(gpt2: Path) -> None:
    edit_json(gpt2 / "config.json", dtype="bfloat16")
    info = describe_model(str(gpt2))
    model, family = load_model(info, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert family is FAMILIES["gpt2"]
    assert load_model(info, dtype="float32")[0].dtype == torch.float32


def test_weights_digest_covers_names_and_bytes(gpt2: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(gpt2, tmp_path / "elsewhere")
    before = weights_digest(str(gpt2))
    assert weights_digest(str(copy)) == before
    assert len(before) == 32
    (copy / "README.md").write_text("not a weight")
    assert weights_digest(str(copy)) == before
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert weights_digest(str(copy)) != before


def test_weights_digest_of_several_files(tmp_path: Path) -> None:
    folder = make_tiny_model("gpt2", tmp_path / "whole")
    model, _ = load_model(describe_model(str(folder)))
    shards = tmp_path / "shards"
    model.save_pretrained(shards, max_shard_size="100kB")
    names = sorted(path.name for path in shards.glob("model-*.safetensors"))
    assert len(names) > 1
    before = weights_digest(str(shards))
    other = shutil.copytree(shards, tmp_path / "other")
    data = bytearray((other / names[1]).read_bytes())
    data[-1] ^= 1
    (other / names[1]).write_bytes(data)
    assert weights_digest(str(other)) != before
    (shards / names[1]).unlink()
    with pytest.raises(InputError, match=f"lacks the weight file {names[1]}"):
        weights_digest(str(shards))


def test_missing_weights_are_named(gpt2: Path) -> None:
    weights = load_file(gpt2 / "model.safetensors")
    (key,) = [key for key in weights if key.endswith("h.1.mlp.c_fc.weight")]
    del weights[key]
    save_file(weights, gpt2 / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks weights .*: h\.1\.mlp\.c_fc\.weight;"):
        load_model(describe_model(str(gpt2)))


def test_a_missing_pooler_is_no_loss(tmp_path: Path) -> None:
    folder = make_tiny_model("bert", tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "pooler" not in key}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    load_model(describe_model(str(folder)))


def test_weights_of_another_shape_are_named(gpt2: Path) -> None:
    edit_json(gpt2 / "config.json", vocab_size=400)
    with pytest.raises(UnsupportedModelError, match=r"weights of another shape .*wte\.weight"):
        load_model(describe_model(str(gpt2)))


# --- bad input ---------------------------------------------------------------------------------


def _truncated_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gp')


def _no_model_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def _unknown_type(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="nosuch")


def _remote_code(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="nosuch", auto_map={"AutoConfig": "code.Config"})


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _encoder_decoder(folder: Path) -> None:
    transformers.T5Config().save_pretrained(folder)


def _pictures(folder: Path) -> None:
    transformers.ViTConfig(num_hidden_layers=1).save_pretrained(folder)


def _shared_blocks(folder: Path) -> None:
    transformers.AlbertConfig(num_hidden_layers=4).save_pretrained(folder)


def _no_sizes(folder: Path) -> None:
    transformers.ResNetConfig().save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "kind", "says"),
    [
        (_truncated_config, InputError, "not a valid JSON"),
        (_no_model_type, InputError, "Unrecognized model"),
        (_unknown_type, InputError, "nosuch"),
        (_remote_code, InputError, "trust_remote_code"),
        (_no_config, InputError, "has no config.json"),
        (_encoder_decoder, UnsupportedModelError, "encoder-decoder"),
        (_pictures, UnsupportedModelError, "not a text model: it takes pixel_values"),
        (_shared_blocks, UnsupportedModelError, "albert.* expected one list of 4 blocks"),
        (_no_sizes, UnsupportedModelError, "does not state its number of blocks"),
    ],
)
def test_what_is_not_a_supported_model_gives_one_line(
    gpt2: Path, damage: Callable[[Path], None], kind: type[ActstoreError], says: str
) -> None:
    damage(gpt2)
    with pytest.raises(kind, match=says) as caught:
        describe_model(str(gpt2))
    assert "\n" not in str(caught.value)


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _torn_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "says"),
    [(_no_weights, "no file named model.safetensors"), (_torn_weights, "SafetensorError")],
)
def test_damaged_weights_give_one_line(
    gpt2: Path, damage: Callable[[Path], None], says: str
) -> None:
    info = describe_model(str(gpt2))
    damage(gpt2)
    with pytest.raises(InputError, match=says) as caught:
        load_model(info)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model_id", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c", "", " "]
)
def test_a_path_to_nothing_is_not_looked_up_elsewhere(
    model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    for read in (describe_model, weights_digest, Tokenizer.load):
        with pytest.raises(InputError, match="does not exist"):
            read(model_id)


def test_a_file_is_not_a_model(gpt2: Path) -> None:
    with pytest.raises(InputError, match="give the folder"):
        describe_model(str(gpt2 / "config.json"))


def test_bad_dtype_and_device(gpt2: Path) -> None:
    info = describe_model(str(gpt2))
    with pytest.raises(InputError, match="dtype 'int8' is unknown: use auto, float32"):
        load_model(info, dtype="int8")
    with pytest.raises(InputError, match="device 'tape' is unknown"):
        load_model(info, device="tape")
    with pytest.raises(ResourceError, match="device 'cuda:99' is not here"):
        load_model(info, device="cuda:99")


# --- network and noise -------------------------------------------------------------------------


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        pytest.fail("a network call was made")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_local_folder_makes_no_network_call(
    tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(make_tiny_model(kind, tmp_path / kind))
    forbid_network(monkeypatch)
    load_model(describe_model(folder))
    weights_digest(folder)
    Tokenizer.load(folder)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A downloaded snapshot of `lab/tiny`, with the network off; returns its commit."""
    commit = "0123456789abcdef" * 2 + "01234567"
    repository = tmp_path / "hub" / "models--lab--tiny"
    make_tiny_model("gpt2", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return commit


def test_a_hub_id_is_pinned_to_its_commit(hub_cache: str) -> None:
    info = describe_model("lab/tiny")
    assert info.revision == hub_cache
    assert load_model(info)[0].config.model_type == "gpt2"
    assert len(weights_digest("lab/tiny", revision=info.revision)) == 32
    assert Tokenizer.load("lab/tiny", revision=info.revision).n_special == 0


@pytest.mark.parametrize(
    "ask", [{"model_id": "lab/none"}, {"model_id": "lab/tiny", "revision": "v9"}]
)
def test_a_hub_id_out_of_reach_gives_one_line(hub_cache: str, ask: dict[str, str]) -> None:
    for read in (describe_model, Tokenizer.load, weights_digest):
        with pytest.raises(InputError, match=ask["model_id"]) as caught:
            read(**ask)
        assert "\n" not in str(caught.value)


def test_loading_prints_nothing_and_leaves_the_engine_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_tiny_model("llama", tmp_path / "llama"))  # its head is unexpected: a report
    engine_logging.set_verbosity_info()
    try:
        load_model(describe_model(folder))
        Tokenizer.load(folder)
        assert engine_logging.get_verbosity() == engine_logging.INFO
        assert engine_logging.is_progress_bar_enabled()
    finally:
        engine_logging.set_verbosity_warning()
    out, err = capfd.readouterr()
    assert out == err == ""


def test_quiet_ends_with_an_exception() -> None:
    before = engine_logging.get_verbosity()
    with quiet():
        assert engine_logging.get_verbosity() == engine_logging.ERROR
        assert not engine_logging.is_progress_bar_enabled()
    with pytest.raises(ZeroDivisionError), quiet():
        raise ZeroDivisionError
    assert engine_logging.get_verbosity() == before
    assert engine_logging.is_progress_bar_enabled()
