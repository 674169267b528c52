"""Finding a model's files, and turning the engine's failures into one clear line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as engine_logging
from transformers.utils.hub import cached_file

from actstore.errors import ActstoreError, InputError, ResourceError

__all__ = ["find_file", "first_line", "load_errors", "locate", "quiet", "resolved_commit"]

_LOOKS_LIKE_A_PATH = re.compile(r"[.~/\\]|.*[/\\].*[/\\]|.*\\")
_COMMIT = re.compile(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")


def locate(model_id: str, revision: str | None) -> dict[str, Any]:
    """Keyword arguments that tell transformers where to look; a folder makes no network call.

    InputError if `model_id` is written as a path and there is no such folder.
    """
    if not model_id.strip():
        raise InputError(f"model {model_id!r} does not exist: give a folder or a hub id")
    folder = Path(model_id)
    if folder.is_dir():
        return {"local_files_only": True}
    if folder.exists():
        raise InputError(
            f"model {model_id!r} is a file: give the folder that holds config.json, or a hub id"
        )
    if _LOOKS_LIKE_A_PATH.match(model_id):
        raise InputError(f"model folder {model_id!r} does not exist: check the path")
    return {"revision": revision}


def find_file(
    model_id: str, revision: str | None, name: str, *, required: bool = False
) -> Path | None:
    """The local path of one of the model's files, downloaded if need be; None if it has none.

    `required` makes InputError of a hub id that does not exist or cannot be reached.
    """
    where = locate(model_id, revision)
    with quiet(), load_errors(model_id, "model"):
        found = cached_file(model_id, name, _raise_exceptions_for_missing_entries=required, **where)
    return None if found is None else Path(found)


def resolved_commit(path: Path, revision: str | None) -> str | None:
    """The hub commit that a downloaded file belongs to, else `revision` unchanged."""
    match = _COMMIT.search(os.fspath(path))
    return match.group(1) if match else revision


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the engine's reports, hints and progress bars; errors are still raised."""
    verbosity, bars = engine_logging.get_verbosity(), engine_logging.is_progress_bar_enabled()
    engine_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    engine_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        engine_logging.set_verbosity(verbosity)
        if bars:
            engine_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def first_line(error: BaseException) -> str:
    """The first sentence of an error's text on one line, after the error's type where the text
    alone may say little."""
    lines = str(error).split("\n")
    text = lines.pop(0).strip()
    while lines and len(text) < 300 and not text.endswith((".", "!", "?", ")")):
        text = f"{text} {lines.pop(0).strip()}".strip()
    text = text.rstrip(".")
    return (
        text
        if isinstance(error, OSError | ValueError) and text
        else f"{type(error).__name__}: {text}"
    )


@contextmanager
def load_errors(model_id: str, what: str) -> Iterator[None]:
    """Re-raise whatever goes wrong while reading `what` of a model as one line.

    The engine raises nearly every type for a bad folder or id, so all are InputError here, save
    for memory, which is ResourceError.
    """
    try:
        yield
    except ActstoreError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"not enough memory to load {model_id!r}: use a smaller --dtype, fewer workers or a "
            "larger machine"
        ) from error
    except Exception as error:
        text = first_line(error)
        if "trust_remote_code" in str(error):
            text = "it needs code from its own folder: read that code, then pass trust_remote_code"
        elif not Path(model_id).is_dir() and isinstance(error, OSError):
            text += "; give a folder or a hub id that exists and can be reached from here"
        raise InputError(f"cannot load the {what} of {model_id!r}: {text}") from error
