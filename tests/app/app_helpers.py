"""Running commands in this process without Ray, and in a process of their own with it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from actstore.runtime.execute import SerialExecutor

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
TEXT = (
    "the quick brown fox jumps over a lazy dog while naïve café owners read 数学 books and "
    "😀 numbers 3.14 it's don't (perhaps) street-wise ... Straße Ünïcode weather"
)
WORDS = TEXT.split()


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extraction and fitting in this process: everything but the engine is the same."""
    import actstore.app.extract
    import actstore.app.probe

    for module in (actstore.app.extract, actstore.app.probe):
        monkeypatch.setattr(module, "RayExecutor", lambda **_: SerialExecutor())


def mixed_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of 0 to several hundred words, many short, some empty or blank, many not ASCII."""
    rng = random.Random(seed)
    texts = ["", " ", "a", "é", "😀", "数"]
    while len(texts) < n:
        length = rng.choice([1, 2, 3, 5, 8, 13, 30, 60, 120, 300])
        texts.append(" ".join(rng.choices(WORDS, k=length)))
    return texts[:n]


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def labelled(path: Path, n: int, seed: int = 0) -> Path:
    """A dataset whose label can be read off the text: which of two words it repeats."""
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for number in range(n):
        label = rng.choice(["fox", "dog"])
        words = rng.choices(WORDS[:9], k=rng.randint(3, 12))
        words.insert(rng.randrange(len(words)), "brown brown" if label == "fox" else "lazy lazy")
        rows.append({"text": " ".join(words), "label": label, "group": f"g{number % 10}"})
    return write_jsonl(path, rows)


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "actstore", *map(str, arguments)]


def actstore(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in its own process and insist on its exit code."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), timeout=280
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def tree(root: Path) -> dict[str, bytes]:
    """All files of a store by relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
