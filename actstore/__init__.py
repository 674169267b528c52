"""actstore: extract once, probe ten thousand times.

`actstore.open(path)` opens an activation store read-only. Nothing heavy (torch, ray,
transformers, zarr, pyarrow, numpy) is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actstore.store.reader import Store
    from actstore.store.view import View

__version__ = "0.1.0"
__all__ = ["Store", "View", "__version__", "open"]


def open(path: str) -> Store:
    """Open a store read-only. Running no code of the store's maker, it is safe on strangers'
    stores.

    Raises:
        NotAStoreError: the path holds no store, or one of a newer format.
    """
    from actstore.store.reader import Store

    return Store.open(path)


def __getattr__(name: str) -> Any:
    if name == "Store":
        from actstore.store.reader import Store

        return Store
    if name == "View":
        from actstore.store.view import View

        return View
    raise AttributeError(f"module 'actstore' has no attribute {name!r}")
