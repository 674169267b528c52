"""The store against plain zarr-python and whole arrays in memory, and against damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from fake_store import begin_store, fake_rows, fill_unit, make_manifest, make_store, make_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import (
    ChecksumError,
    DamagedStoreError,
    InputError,
    MissingShardError,
    NotAStoreError,
    ResourceError,
    UnknownNameError,
)
from actstore.store.layout import DTYPES
from actstore.store.publish import publish
from actstore.store.reader import Store
from actstore.store.verify import verify_store
from actstore.store.writer import check_space, create_store, finish_store, write_lock
from actstore.tokens import make_mask

LENGTHS = [5, 0, 40, 2, 1, 33, 17, 64, 3, 0, 29, 50, 8]


def expected(store: Store, site: str, mask: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a mask out of the whole array in memory."""
    selection = store.mask(mask)
    rows = fake_rows(site, store.tokens.n_tokens, store.d_model, store.manifest.request.dtype)
    return rows[selection.rows], selection.offsets


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_plain_zarr_reads_the_same_numbers(tmp_path: Path, dtype: str) -> None:
    store = make_store(
        tmp_path / "s",
        LENGTHS,
        dtype=dtype,
        masks=("content", "all", "last"),
        pools=("mean",),
        shard_bytes=1500,
    )
    assert len(store.plan.units) > 2
    group = zarr.open_group(tmp_path / "s", mode="r")
    for mask in ("content", "all"):
        want, offsets = expected(store, "resid_post.0", mask)
        array = group[f"acts/resid_post.0/{mask}"]
        assert str(array.dtype) == dtype
        values = array[:]
        starts = (
            group[f"tokens/masks/{mask}/starts"][:]
            if mask != "all"
            else store.plan.array_starts("all", offsets)
        )
        for example, (begin, stop) in enumerate(pairwise(offsets)):
            got = values[starts[example] : starts[example] + stop - begin]
            np.testing.assert_array_equal(got.view(np.uint8), want[begin:stop].view(np.uint8))
        # everything else, the gaps behind units included, reads as NaN: never as zeros
        used = np.zeros(len(values), bool)
        for example, (begin, stop) in enumerate(pairwise(offsets)):
            used[starts[example] : starts[example] + stop - begin] = True
        assert np.isnan(values[~used].astype(np.float32)).all()
        assert used.sum() == store.n_rows(mask)
    last = group["acts/resid_post.0/last"][:]
    np.testing.assert_array_equal(
        last.view(np.uint8), expected(store, "resid_post.0", "last")[0].view(np.uint8)
    )
    pooled = group["acts/resid_post.0/content.mean"][:].astype(np.float32)
    assert pooled.shape == (len(LENGTHS), store.d_model)
    np.testing.assert_array_equal(group["tokens/ids"][:], make_tokens(LENGTHS).ids)
    np.testing.assert_array_equal(group["tokens/special"][:], make_tokens(LENGTHS).special)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=25),
    shard_bytes=st.sampled_from([64, 300, 1000, 5000, 10**6]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    data=st.data(),
)
def test_any_examples_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    shard_bytes: int,
    dtype: str,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("any") / "s"
    store = make_store(
        path, lengths, dtype=dtype, shard_bytes=shard_bytes, masks=("content", "first")
    )
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12))
    for mask in ("content", "first", "last"):
        rows, starts = expected(store, "resid_post.0", mask)
        got, offsets = store.view(site="resid_post.0", mask=mask).read(chosen, dtype="stored")
        want = [rows[starts[e] : starts[e + 1]] for e in chosen]
        np.testing.assert_array_equal(np.diff(offsets), [len(part) for part in want])
        flat = np.concatenate([rows[:0], *want])
        np.testing.assert_array_equal(got.view(np.uint8), flat.view(np.uint8))
    assert verify_store(store, deep=True).good


def test_views(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", LENGTHS, masks=("all",), pools=("max",), dtype="bfloat16")
    view = store.view(site="resid_post.0", mask="content")
    rows, offsets = view.read()
    want, want_offsets = expected(store, "resid_post.0", "content")
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, want.astype(np.float32))
    np.testing.assert_array_equal(offsets, want_offsets)
    mean, _ = store.view(site="resid_post.0", mask="content", pool="mean").read()
    for example, (begin, stop) in enumerate(pairwise(offsets)):
        if begin == stop:
            assert np.isnan(mean[example]).all()
        else:
            np.testing.assert_allclose(mean[example], rows[begin:stop].mean(0), rtol=1e-6)
    stored, _ = store.view(site="resid_post.0", mask="all", pool="max").read([3, 0])
    all_rows, all_offsets = store.view(site="resid_post.0", mask="all").read()
    np.testing.assert_array_equal(stored[0], all_rows[all_offsets[3] : all_offsets[4]].max(0))
    np.testing.assert_array_equal(stored[1], all_rows[: all_offsets[1]].max(0))


def test_batches_visit_every_example_once_and_repeat(tmp_path: Path) -> None:
    view = make_store(tmp_path / "s", LENGTHS).view(site="resid_post.0")
    rows, offsets = view.read()
    for shuffle in (None, 7):
        batches = view.batches(rows=40, shuffle=shuffle)
        first = [batch.examples for batch in batches]
        second = [batch.examples for batch in batches]
        assert len(first) > 3
        for order in (first, second):
            assert sorted(np.concatenate(order).tolist()) == list(range(len(LENGTHS)))
        same = [a.tolist() for a in first] == [b.tolist() for b in second]
        assert same == (shuffle is None)
        for batch in batches:
            for k, example in enumerate(batch.examples):
                np.testing.assert_array_equal(
                    batch.rows[batch.offsets[k] : batch.offsets[k + 1]],
                    rows[offsets[example] : offsets[example + 1]],
                )


def test_bytes_on_disk_are_rows_times_width(tmp_path: Path) -> None:
    lengths = [37] * 4000
    store = make_store(
        tmp_path / "s", lengths, d_model=64, masks=("all",), shard_bytes=16 << 20, dtype="bfloat16"
    )
    on_disk = sum(p.stat().st_size for p in (tmp_path / "s/acts/resid_post.0/all/c").rglob("0"))
    payload = store.n_rows("all") * 64 * 2
    assert payload <= on_disk <= 1.03 * payload  # 18 MB; the padding is per shard, so it shrinks


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", LENGTHS)
    with pytest.raises(UnknownNameError, match="resid_post.1 is not in"):
        store.view(site="resid_post.1")
    with pytest.raises(UnknownNameError, match="layer 9 does not exist"):
        store.view(layer=9)
    assert store.view(layer=1).site == "resid_post.0"
    assert store.layer_of("resid_post.0") == 1
    with pytest.raises(UnknownNameError, match="mask 'words'"):
        store.view(site="resid_post.0", mask="words")
    with pytest.raises(UnknownNameError, match="neither stored"):
        store.view(site="resid_post.0", mask="all")
    with pytest.raises(UnknownNameError, match="pool 'median'"):
        store.view(site="resid_post.0", pool="median")
    with pytest.raises(InputError, match="example 99 does not exist"):
        store.view(site="resid_post.0").read([99])
    with pytest.raises(UnknownNameError, match="either site= or layer="):
        store.view()


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="does not exist"):
        actstore.open(str(tmp_path / "nothing"))
    with pytest.raises(NotAStoreError, match="is not an activation store"):
        actstore.open(str(tmp_path))
    zarr.open_group(tmp_path / "plain", mode="w")
    with pytest.raises(NotAStoreError, match="not an activation store"):
        actstore.open(str(tmp_path / "plain"))
    make_store(tmp_path / "s", [3])
    group = tmp_path / "s" / "zarr.json"
    group.write_text(group.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(NotAStoreError, match="reads format 1"):
        actstore.open(str(tmp_path / "s"))


def shard_files(root: Path) -> list[Path]:
    return sorted(p for p in (root / "acts").rglob("*") if p.is_file() and p.name != "zarr.json")


def test_a_deleted_shard_is_named_and_never_read_as_zeros(tmp_path: Path) -> None:
    make_store(tmp_path / "s", LENGTHS)
    shard_files(tmp_path / "s")[1].unlink()
    store = Store.open(tmp_path / "s")
    report = verify_store(store)
    assert not report.good
    (finding,) = report.findings
    assert finding.belongs_to == "unit 1, site resid_post.0, mask content"
    assert finding.problem == "missing"
    with pytest.raises(MissingShardError, match=r"unit 1, site resid_post\.0"):
        store.view(site="resid_post.0").read()
    first = store.plan.units[0]
    rows, _ = store.view(site="resid_post.0").read(np.arange(first.first, first.stop))
    assert len(rows)


@pytest.mark.parametrize("where", ["payload", "chunk crc", "index", "index crc"])
def test_a_flipped_byte_is_found_by_verify_and_by_reading(tmp_path: Path, where: str) -> None:
    make_store(tmp_path / "s", LENGTHS)
    path = shard_files(tmp_path / "s")[0]
    data = bytearray(path.read_bytes())
    store = Store.open(tmp_path / "s")
    spec = store.rows_array("resid_post.0", "content")
    chunk = spec.chunk_rows * spec.row_bytes
    at = {"payload": 5, "chunk crc": chunk + 1, "index": len(data) - 10, "index crc": -1}[where]
    data[at] ^= 0x10
    path.write_bytes(bytes(data))
    report = verify_store(Store.open(tmp_path / "s"))
    assert [f.key for f in report.findings] == [str(path.relative_to(tmp_path / "s"))]
    assert "unit 0, site resid_post.0" in report.findings[0].belongs_to
    with pytest.raises(ChecksumError, match=r"unit 0, site resid_post\.0"):
        Store.open(tmp_path / "s").view(site="resid_post.0").read()


def test_damage_anywhere_is_found(tmp_path: Path) -> None:
    """Every file of a store, flipped or cut: verify finds it or the store refuses to open."""
    make_store(tmp_path / "s", [5, 9, 3, 7], masks=("content", "last"), pools=("mean",))
    root = tmp_path / "s"
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != ".lock")
    assert len(files) > 30
    rng = np.random.default_rng(0)
    for path in files:
        original = path.read_bytes()
        for cut in (False, True):
            data = bytearray(original)
            if cut:
                data = data[: len(data) // 2]
            else:
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(data))
            try:
                good = verify_store(Store.open(root), deep=True).good
            except (DamagedStoreError, NotAStoreError):
                good = False
            assert not good, f"{path.relative_to(root)} cut={cut}"
        path.write_bytes(original)
    assert verify_store(Store.open(root), deep=True).good


def test_a_truncated_shard_and_a_swapped_one(tmp_path: Path) -> None:
    store_len = 8
    make_store(tmp_path / "s", [30] * store_len)
    one, two = shard_files(tmp_path / "s")[:2]
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    assert len(verify_store(Store.open(tmp_path / "s")).findings) == 2
    # the two files have the same size and, being whole shards, the same crc32c
    for example in (0, store_len - 1):
        with pytest.raises(ChecksumError, match="checksum"):
            Store.open(tmp_path / "s").view(site="resid_post.0").read([example])
    one.write_bytes(a[:-8])
    with pytest.raises(ChecksumError):
        Store.open(tmp_path / "s").view(site="resid_post.0").read()


def test_an_unfinished_store_says_which_unit_is_missing(tmp_path: Path) -> None:
    tokens = make_tokens(LENGTHS)
    store = begin_store(tmp_path / "s", tokens, make_manifest(tokens))
    fill_unit(store, 0)
    store = Store.open(tmp_path / "s")
    report = verify_store(store)
    assert not report.good
    assert (report.units_done, report.units) == (1, len(store.plan.units))
    assert not report.findings
    view = store.view(site="resid_post.0")
    first = store.plan.units[0]
    assert len(view.read(np.arange(first.first, first.stop))[0])
    with pytest.raises(MissingShardError, match="unit 1.*not extracted yet"):
        view.read()


def test_finishing_twice_and_after_a_kill_gives_the_same_bytes(tmp_path: Path) -> None:
    make_store(tmp_path / "a", LENGTHS, masks=("content", "last"), pools=("mean",))
    tokens = make_tokens(LENGTHS)
    manifest = make_manifest(tokens, masks=("content", "last"), pools=("mean",))
    store = begin_store(tmp_path / "b", tokens, manifest)
    for unit in reversed(store.plan.units):
        fill_unit(store, unit.index)
        fill_unit(store, unit.index)  # a late duplicate is discarded
    finish_store(Store.open(tmp_path / "b"))
    # what a kill between commit and clean-up leaves behind
    (tmp_path / "b/commits/pending").mkdir()
    (tmp_path / "b/acts/.tmp-1-x").write_bytes(b"half")
    finish_store(Store.open(tmp_path / "b"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_a_damaged_part_stops_the_commit(tmp_path: Path) -> None:
    tokens = make_tokens(LENGTHS)
    store = begin_store(tmp_path / "s", tokens, make_manifest(tokens, masks=("last",)))
    for unit in store.plan.units:
        fill_unit(store, unit.index)
    part = next((tmp_path / "s/parts").rglob("00000000"))
    part.write_bytes(b"x" * part.stat().st_size)
    with pytest.raises(ChecksumError, match="unit 0"):
        finish_store(Store.open(tmp_path / "s"))
    assert not Store.open(tmp_path / "s").complete


def test_publish_is_write_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    first, created = publish(path, [b"ab", memoryview(b"cd")])
    again, created_again = publish(path, [b"abcd"])
    assert first == again
    assert (created, created_again) == (True, False)
    assert path.read_bytes() == b"abcd"
    with pytest.raises(ChecksumError, match="4 bytes where 1"):
        publish(path, [b"x"])
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_sigkill_while_publishing_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom actstore.store.publish import publish\n"
        "def pieces():\n    yield b'half'\n    os.kill(os.getpid(), 9)\n"
        "publish(Path(sys.argv[1]), pieces())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], check=False)
    assert done.returncode == -9
    names = [p.name for p in tmp_path.iterdir()]
    assert len(names) == 1
    assert names[0].startswith(".tmp-")  # the kill took effect in the middle


def test_creating_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").write_text("precious")
    tokens = make_tokens([3])
    with pytest.raises(InputError, match="not an activation store"):
        begin_store(tmp_path / "s", tokens, make_manifest(tokens))
    assert [p.name for p in tmp_path.rglob("*")] == ["s", "mine.txt"]


def test_creating_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    tokens = make_tokens([3])
    manifest = make_manifest(tokens)
    good = begin_store(tmp_path / "good", tokens, manifest)
    masks = {"content": make_mask("content", tokens)}
    with pytest.raises(AttributeError):
        create_store(tmp_path / "bad", manifest, good.plan, tokens, masks, None)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from actstore.store.writer import write_lock\n"
        "with write_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {holder.pid}"), write_lock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with write_lock(tmp_path):
        pass


def test_too_little_space_is_said_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="GB free"):
        check_space(tmp_path / "not" / "yet", 10**18)
    check_space(tmp_path / "not" / "yet", 1)


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import actstore.store.publish as module

    def full(descriptor: int, data: object) -> int:
        with open("/dev/full", "wb", buffering=0) as file:
            return file.write(bytes(data))  # type: ignore[call-overload]

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(ResourceError, match="no space left while writing") as caught:
        publish(tmp_path / "f", [b"data"])
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_dtypes_cover_what_the_format_names() -> None:
    assert {"float32", "float16", "bfloat16"} <= set(DTYPES)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Apply `change` to a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


HOSTILE: dict[str, tuple[str, Callable[[Any], object]]] = {
    "a unit's edge moved": ("plan.json", lambda d: d["units"]["stop"].__setitem__(0, 4)),
    "stops descend": ("plan.json", lambda d: d["units"]["stop"].reverse()),
    "chunks of nothing": ("plan.json", lambda d: d["masks"]["content"].update(chunk_rows=0)),
    "chunks of text": ("plan.json", lambda d: d["masks"]["content"].update(chunk_rows="x")),
    "absurd shape": (
        "plan.json",
        lambda d: d["masks"]["content"].update(shape_rows=10**15, shard_rows=1, chunk_rows=1),
    ),
    "a file outside": (
        "plan.json",
        lambda d: d["files"].update({"../../etc/hostname": {"bytes": 1, "crc32c": "0"}}),
    ),
    "an absolute file": (
        "plan.json",
        lambda d: d["files"].update({"/etc/hostname": {"bytes": 1, "crc32c": "0"}}),
    ),
    "no files": ("plan.json", lambda d: d.update(files=[])),
    "another dtype": ("zarr.json", lambda d: request(d).update(dtype="int32")),
    "unknown dtype": ("zarr.json", lambda d: request(d).update(dtype="zzz")),
    "a site outside": ("zarr.json", lambda d: request(d).update(sites=["../.."])),
    "a mask outside": ("zarr.json", lambda d: request(d).update(masks=["../x"])),
    "fewer examples": (
        "zarr.json",
        lambda d: d["attributes"]["actstore"]["dataset"].update(n_examples=12),
    ),
    "no width": ("zarr.json", lambda d: d["attributes"]["actstore"]["model"].update(d_model=0)),
    "absurd width": (
        "zarr.json",
        lambda d: d["attributes"]["actstore"]["model"].update(d_model=10**12),
    ),
    "absurd table": ("tokens/ids/zarr.json", lambda d: d.update(shape=[10**15])),
    "commit of another store": ("commits/00000001.json", lambda d: d.update(units=99)),
    "commit lists text": ("commits/00000001.json", lambda d: d.update(shards="x")),
}


def request(data: Any) -> Any:
    return data["attributes"]["actstore"]["request"]


def use(path: Path) -> None:
    opened = Store.open(path)
    assert not verify_store(opened, deep=True).good
    opened.view(site="resid_post.0").read()
    assert opened.tokens.n_tokens


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.timeout(20)
def test_tampered_metadata_is_refused(tmp_path: Path, case: str) -> None:
    """Never wrong rows, a crash of another kind, or a path outside the store."""
    make_store(tmp_path / "s", LENGTHS)
    name, change = HOSTILE[case]
    edit(tmp_path / "s" / name, change)
    with pytest.raises((DamagedStoreError, NotAStoreError)) as caught:
        use(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_a_commit_that_is_no_commit(tmp_path: Path) -> None:
    make_store(tmp_path / "s", LENGTHS)
    for text in ("null", "[]", "[" * 100_000, '{"shards": {}}'):
        (tmp_path / "s/commits/00000002.json").write_text(text)
        with pytest.raises(DamagedStoreError, match="00000002"):
            Store.open(tmp_path / "s")
