"""Extraction end to end: stored rows against the plain forward pass, refusals, bad input."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
import zarr
from app_helpers import mixed_texts, serial, write_jsonl  # noqa: F401
from tiny_models import make_tiny_model
from transformers import AutoModel, AutoTokenizer

import actstore
from actstore.app import extract, info, verify
from actstore.config import ExtractRun, InfoRun, VerifyRun
from actstore.errors import (
    ActstoreError,
    DatasetError,
    IncompleteRunError,
    InputError,
    MissingShardError,
    ResourceError,
    StoreMismatchError,
    UnknownNameError,
)

pytestmark = pytest.mark.usefixtures("serial")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("gpt2", tmp_path_factory.mktemp("model") / "gpt2")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": t, "label": i % 3} for i, t in enumerate(mixed_texts(30))]
    return write_jsonl(tmp_path / "texts.jsonl", rows)


def run_extract(model: Path, dataset: Path, store: Path, **options: object) -> int:
    return extract.run(
        ExtractRun(
            model=str(model), dataset=str(dataset), store=str(store), progress="none", **options
        )
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_every_row_equals_the_plain_one_text_forward_pass(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 texts of 1 to 512 tokens, several units and packs, against transformers alone."""
    monkeypatch.setattr(tiny_models, "MAX_LENGTH", 512)
    model_path = make_tiny_model(kind, tmp_path / "model")
    n_blocks = 3
    texts = mixed_texts(200)
    dataset = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    run_extract(
        model_path,
        dataset,
        tmp_path / "acts",
        layers=(0, 2, n_blocks),
        masks=("all", "content"),
        shard_mb=1.5,
    )
    store = actstore.open(str(tmp_path / "acts"))
    assert len(store.plan.units) > 1
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModel.from_pretrained(model_path).eval()
    lengths = set()
    for layer in (0, 2, n_blocks):
        rows, offsets = store.view(layer=layer, mask="all").read()
        content, content_offsets = store.view(layer=layer, mask="content").read()
        for example, text in enumerate(texts):
            encoded = tokenizer(
                text, truncation=True, max_length=512, return_special_tokens_mask=True
            )
            ids = torch.tensor([encoded["input_ids"]])
            got = rows[offsets[example] : offsets[example + 1]]
            assert len(got) == ids.shape[1]
            if ids.shape[1] == 0:
                continue
            lengths.add(ids.shape[1])
            with torch.inference_mode():
                want = model(ids, output_hidden_states=True).hidden_states[layer][0].numpy()
            distance = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
            assert distance.max() <= 1e-5, (layer, example, distance.max())
            special = np.array(encoded["special_tokens_mask"], dtype=bool)
            np.testing.assert_array_equal(
                content[content_offsets[example] : content_offsets[example + 1]], got[~special]
            )
    assert {1, 512} <= lengths or (kind == "bert" and {2, 512} <= lengths)


def test_plain_zarr_and_layers_by_name(gpt2: Path, texts: Path, tmp_path: Path) -> None:
    run_extract(gpt2, texts, tmp_path / "a b é", sites=("resid_post.2", "attn_out.0"))
    store = actstore.open(str(tmp_path / "a b é"))
    rows, _ = store.view(site="resid_post.2").read()
    group = zarr.open_group(tmp_path / "a b é", mode="r")
    np.testing.assert_array_equal(group["acts/resid_post.2/content"][:], rows)
    assert store.sites == ("attn_out.0", "resid_post.2")
    assert store.examples.column_names == ["text", "label"]
    # the last block's output is not what layer 3 means in a model with a final norm
    with pytest.raises(UnknownNameError, match="layer 3"):
        store.view(layer=3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(gpt2: Path, texts: Path, tmp_path: Path, dtype: str) -> None:
    run_extract(gpt2, texts, tmp_path / "half", dtype=dtype, pool=("mean",), layers=(2,))
    run_extract(gpt2, texts, tmp_path / "full", layers=(2,))
    half, full = (actstore.open(str(tmp_path / n)).view(layer=2) for n in ("half", "full"))
    a, b = half.read()[0], full.read()[0]
    assert half.read(dtype="stored")[0].dtype.itemsize == 2
    distance = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    assert 1e-5 < np.median(distance) < 5e-2
    rows, offsets = half.read()
    pooled, _ = half.store.view(layer=2, pool="mean").read()
    for example, (begin, stop) in enumerate(pairwise(offsets)):
        if stop > begin:
            np.testing.assert_allclose(
                pooled[example], rows[begin:stop].mean(0), rtol=2e-2, atol=2e-2
            )
        else:
            assert np.isnan(pooled[example]).all()


def test_truncation_is_counted_and_said(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_jsonl(tmp_path / "d.jsonl", [{"text": "fox " * 500}, {"text": "short"}])
    run_extract(gpt2, dataset, tmp_path / "s", layers=(1,))
    assert "Truncated: 1 of 2 examples, cut after 128 tokens." in capsys.readouterr().out
    store = actstore.open(str(tmp_path / "s"))
    assert store.manifest.dataset.n_truncated == 1
    assert store.tokens.n_cut[0] > 0
    assert len(store.view(layer=1).read([0])[0]) == 128


def test_running_again_does_nothing_and_another_request_is_refused(
    gpt2: Path, texts: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    run_extract(gpt2, texts, store, layers=(1,))
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.name != ".lock"}
    run_extract(gpt2, texts, store, layers=(1,))
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.name != ".lock"} == before
    with pytest.raises(StoreMismatchError, match=r"request\.sites is resid_post\.0 there"):
        run_extract(gpt2, texts, store, layers=(1, 2))
    with pytest.raises(StoreMismatchError, match=r"request\.dtype is float32 there"):
        run_extract(gpt2, texts, store, layers=(1,), dtype="float16")
    with pytest.raises(StoreMismatchError, match=r"dataset\.fingerprint"):
        run_extract(gpt2, texts, store, layers=(1,), limit=3)
    other = make_tiny_model("gpt2", tmp_path / "other", seed=1)
    with pytest.raises(StoreMismatchError, match=r"model\.weights_digest"):
        run_extract(other, texts, store, layers=(1,))


def test_dry_run_says_the_size_and_writes_nothing(
    gpt2: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_extract(gpt2, texts, tmp_path / "s", pool=("mean",), dry_run=True, json=True)
    said = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "s").exists()
    run_extract(gpt2, texts, tmp_path / "s", pool=("mean",))
    capsys.readouterr()
    info.run(InfoRun(store=str(tmp_path / "s"), json=True))
    facts = json.loads(capsys.readouterr().out)
    assert said["examples"] == facts["n_examples"]
    assert said["tokens"] == facts["n_tokens"]
    assert said["bytes"] <= facts["bytes"] <= said["bytes"] * 1.5 + 100_000
    assert facts["complete"]
    assert facts["layers"] == {
        "0": "embed", "1": "resid_post.0", "2": "resid_post.1", "3": "final_norm"
    }  # fmt: skip


def test_verify_against_the_model(
    gpt2: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_extract(gpt2, texts, tmp_path / "s", sites=("resid_mid.1", "final_norm"))
    wanted = VerifyRun(store=str(tmp_path / "s"), against_model=10, json=True)
    capsys.readouterr()
    assert verify.run(wanted) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["distances"]) == {"resid_mid.1", "final_norm"}
    assert max(said["distances"].values()) <= 1e-5
    # rows that are intact on disk but were wrong when stored are found out by the model alone
    import actstore.extract as module

    real = module._numpy
    monkeypatch.setattr(module, "_numpy", lambda tensor: real(tensor) * np.float32(1.001))
    run_extract(gpt2, texts, tmp_path / "t", sites=("resid_mid.1", "final_norm"))
    wanted = VerifyRun(store=str(tmp_path / "t"), against_model=10, json=True)
    capsys.readouterr()
    assert verify.run(wanted) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["good"]


def test_a_missing_shard_fails_verify_with_its_unit(
    gpt2: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_extract(gpt2, texts, tmp_path / "s", layers=(2,), shard_mb=0.05)
    (tmp_path / "s/acts/resid_post.1/content/c/2/0").unlink()
    capsys.readouterr()
    assert verify.run(VerifyRun(store=str(tmp_path / "s"))) == 1
    assert "unit 2, site resid_post.1, mask content" in capsys.readouterr().out
    with pytest.raises(MissingShardError, match="unit 2"):
        actstore.open(str(tmp_path / "s")).view(layer=2).read()


def test_a_unit_that_always_fails_is_quarantined_and_the_rest_is_stored(
    gpt2: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import actstore.extract as module

    real, calls = module.extract_unit, []

    def flaky(store: object, extractor: object, number: int) -> object:
        calls.append(number)
        if number == 1:
            raise RuntimeError("poison")
        return real(store, extractor, number)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "extract_unit", flaky)
    with pytest.raises(IncompleteRunError, match=r"1 of \d+ units failed three times.*poison"):
        run_extract(gpt2, texts, tmp_path / "s", layers=(2,), shard_mb=0.05)
    assert calls.count(1) == 3
    store = actstore.open(str(tmp_path / "s"))
    assert not store.complete
    assert set(store.pending) == {u.index for u in store.plan.units} - {1}
    monkeypatch.setattr(module, "extract_unit", real)
    run_extract(gpt2, texts, tmp_path / "s", layers=(2,), shard_mb=0.05)
    run_extract(gpt2, texts, tmp_path / "t", layers=(2,), shard_mb=0.05)
    from app_helpers import tree

    a, b = tree(tmp_path / "s"), tree(tmp_path / "t")
    assert {k: v for k, v in a.items() if k.startswith(("acts/", "tokens/"))} == {
        k: v for k, v in b.items() if k.startswith(("acts/", "tokens/"))
    }
    assert a == b


BAD = {
    "missing file": ({"dataset": "nowhere.jsonl"}, DatasetError, "nowhere.jsonl"),
    "unknown column": ({"text_column": "txt"}, DatasetError, "txt"),
    "unknown site": ({"sites": ("resid_post.9",)}, UnknownNameError, r"resid_post\.9"),
    "unknown point": ({"sites": ("mlp.1",)}, UnknownNameError, "mlp"),
    "unknown layer": ({"layers": (7,)}, UnknownNameError, "layer 7"),
    "no words": ({"masks": ("words",)}, UnknownNameError, "words"),
    "missing model": ({"model": "no-such-folder/at-all/here"}, InputError, "no-such-folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    gpt2: Path, texts: Path, tmp_path: Path, case: str
) -> None:
    options, error, match = BAD[case]
    wanted = {"model": str(gpt2), "dataset": str(texts), "store": str(tmp_path / "new" / "s")}
    with pytest.raises(error, match=match) as caught:
        extract.run(ExtractRun(**{**wanted, **options}, progress="none"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "new").exists()


def test_empty_dataset(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DatasetError, match=r"empty\.jsonl"):
        run_extract(gpt2, tmp_path / "empty.jsonl", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_texts_without_any_token(gpt2: Path, tmp_path: Path) -> None:
    dataset = write_jsonl(tmp_path / "d.jsonl", [{"text": ""}, {"text": ""}])
    run_extract(gpt2, dataset, tmp_path / "s", pool=("mean",), masks=("content", "last"))
    store = actstore.open(str(tmp_path / "s"))
    assert store.n_rows("content") == 0
    assert store.view(layer=1).read()[0].shape == (0, 48)
    assert np.isnan(store.view(layer=1, pool="mean").read()[0]).all()
    assert verify.run(VerifyRun(store=str(tmp_path / "s"), deep=True)) == 0


def test_a_folder_that_is_not_a_store_is_left_alone(
    gpt2: Path, texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(InputError, match="not an activation store"):
        run_extract(gpt2, texts, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["under a file", "dangling link", "linked folder", "here"])
def test_odd_places_for_a_store(
    gpt2: Path, texts: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    if kind == "under a file":
        with pytest.raises(InputError, match="is a file"):
            run_extract(gpt2, texts, tmp_path / "file" / "s")
        with pytest.raises(InputError, match="is a file"):
            run_extract(gpt2, texts, tmp_path / "file" / "s", dry_run=True)
    elif kind == "here":
        monkeypatch.chdir(tmp_path / "empty")
        run_extract(gpt2, texts, Path(), layers=(1,))
        assert actstore.open(str(tmp_path / "empty")).complete
    else:
        (tmp_path / "link").symlink_to(tmp_path / ("empty" if kind == "linked folder" else "new"))
        run_extract(gpt2, texts, tmp_path / "link", layers=(1,))
        assert actstore.open(str(tmp_path / "link")).complete


def test_no_space_left(
    gpt2: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little is refused before writing; a disk that fills up later stops the run, resumable."""
    import shutil

    import actstore.store.shard as module
    from actstore.store.publish import publish

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="GB free"):
        run_extract(gpt2, texts, tmp_path / "s", layers=(2,))
    assert not (tmp_path / "s").exists()
    monkeypatch.undo()
    import actstore.app.extract as app
    from actstore.runtime.execute import SerialExecutor

    monkeypatch.setattr(app, "RayExecutor", lambda **_: SerialExecutor())
    written = []

    def full(path: Path, pieces: object, **options: object) -> object:
        if "acts/" in str(path):
            written.append(path)
            if len(written) > 2:
                raise ResourceError(f"no space left while writing {path}")
        return publish(path, pieces, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "publish", full)
    with pytest.raises(ResourceError, match="no space left"):
        run_extract(gpt2, texts, tmp_path / "s", layers=(2,), shard_mb=0.05)
    assert not actstore.open(str(tmp_path / "s")).complete
    monkeypatch.setattr(module, "publish", publish)
    run_extract(gpt2, texts, tmp_path / "s", layers=(2,), shard_mb=0.05)
    assert verify.run(VerifyRun(store=str(tmp_path / "s"), deep=True)) == 0


def test_errors_have_exit_codes() -> None:
    assert {InputError.exit_code, ResourceError.exit_code, DatasetError.exit_code} == {2}
    assert ActstoreError.exit_code == 1
