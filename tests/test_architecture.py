"""Imports point downwards, engines have one owner, modules stay small, the start stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "actstore"

#: layer of each module or folder; a module may import its own layer and those below
LAYERS = {
    "errors": 0,
    "option": 0,
    "site": 0,
    "tokens": 0,
    "task": 0,
    "checksum": 0,
    "plan": 1,
    "manifest": 1,
    "pooling": 1,
    "config": 1,
    "evaluate.metrics": 1,
    "evaluate.split": 1,
    "data": 2,
    "model": 2,
    "store": 2,
    "runfile": 2,
    "request": 2,
    "demo_data": 2,
    "extract": 3,
    "probes": 3,
    "evaluate": 3,
    "report": 3,
    "runtime": 4,
    "app": 5,
    "cli": 6,
    "__main__": 6,
    "__init__": 6,
}
#: who alone may import each engine
OWNERS = {
    "ray": ("runtime/ray.py",),
    "zarr": ("store/zarr_dtype.py",),
    "transformers": ("model/",),
    "tokenizers": ("model/",),
    "datasets": ("data/",),
    "conllu": ("data/",),
    "pydantic": ("runfile.py", "request.py"),
    "click": ("cli/",),
    "rich": ("runtime/progress.py",),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def layer_of(name: str) -> int:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        known = LAYERS.get(".".join(parts[:length]))
        if known is not None:
            return known
    raise AssertionError(f"{name} has no layer: add it to LAYERS")


def imports(source: str, module: str) -> set[str]:
    """Every module imported anywhere in a file, functions and type checking included."""
    found: set[str] = set()
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package[: len(package) - node.level + 1]
                base = ".".join(["actstore", *up, *([base] if base else [])])
            found.add(base)
            # `from . import store` and `from actstore import store` name modules too
            found |= {f"{base}.{alias.name}" for alias in node.names if base.startswith("actstore")}
    return found


def upward(source: str, module: str) -> list[str]:
    mine = layer_of(module) if module else 6
    bad = []
    for target in imports(source, module):
        if not target.startswith("actstore."):
            continue
        name = target.removeprefix("actstore.")
        is_module = (PACKAGE / Path(*name.split("."))).with_suffix(".py").exists() or (
            PACKAGE / Path(*name.split("."))
        ).is_dir()
        if is_module and layer_of(name) > mine:
            bad.append(target)
    return bad


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    name = name_of(path) if path != PACKAGE / "__init__.py" else "__init__"
    assert upward(path.read_text(), name) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("errors", "import actstore.store.reader"),
        ("store.layout", "from actstore.extract import extract_unit"),
        ("store.layout", "def f():\n    from actstore import runtime"),
        ("evaluate.metrics", "from actstore.store import reader"),
        ("store.layout", "from .. import extract"),
        ("model.hooks", "from actstore.app.probe import run"),
    ],
)
def test_the_rule_catches_violations(module: str, line: str) -> None:
    assert upward(line, module)


def test_engines_have_one_owner() -> None:
    for path in modules():
        place = str(path.relative_to(PACKAGE))
        for target in imports(path.read_text(), name_of(path)):
            engine = target.split(".")[0]
            if engine in OWNERS:
                assert place.startswith(OWNERS[engine]), f"{place} imports {engine}"


def test_modules_are_small() -> None:
    sizes = {
        p: len(p.read_text().splitlines()) for p in [*modules(), *(ROOT / "jobs").glob("*.py")]
    }
    assert {str(p): n for p, n in sizes.items() if n > 400} == {}
    assert sorted(sizes.values())[len(sizes) // 2] <= 200


HEAVY = ("torch", "ray", "transformers", "zarr", "pyarrow", "datasets")


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import actstore", (*HEAVY, "numpy", "pydantic")),
        (
            "import actstore.store.reader, actstore.store.view",
            ("torch", "ray", "transformers", "zarr"),
        ),
        ("import actstore.extract, actstore.evaluate.protocol", ("ray", "transformers", "zarr")),
    ],
)
def test_light_imports(statement: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys\n{statement}\nprint([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_core_works_without_ray(tmp_path: Path) -> None:
    """Extraction and fitting need no Ray: the engine-free core runs where it is not installed."""
    blocker = "import sys\nsys.modules['ray'] = None\n"
    code = (
        "import actstore.extract, actstore.evaluate.protocol, actstore.runtime.execute\n"
        "import actstore.runtime.pool, actstore.store.verify, actstore.probes.attention\n"
    )
    subprocess.run([sys.executable, "-c", blocker + code], check=True)
