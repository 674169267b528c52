"""True `bfloat16` for zarr-python. Importing this module registers it.

The package also declares it under the entry point group `zarr.data_type`, but zarr 3.1 collects
that group without ever loading it. So plain readers of a bfloat16 store import this module (or
open the store with actstore) after zarr; without it, zarr refuses the array: loudly, not wrongly.

zarr-python up to 3.1 refuses the data type; tensorstore and zarrs read it natively. This class
mixes in zarr's endianness handling because the `bytes` codec must state it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import ml_dtypes
import numpy as np
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.npy.float import BaseFloat

__all__ = ["BFloat16"]

_DTYPE = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """Zarr v3 `bfloat16`, as ml_dtypes' numpy type."""

    dtype_cls = type(_DTYPE)
    _zarr_v3_name = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        if dtype != _DTYPE:
            from zarr.core.dtype.common import DataTypeValidationError

            raise DataTypeValidationError(f"Invalid data type: {dtype}. Expected {_DTYPE}")
        return cls(endianness="little")

    def to_native_dtype(self) -> Any:
        # numpy cannot byte-swap ml_dtypes' type; the format is little-endian throughout
        return _DTYPE

    def _cast_scalar_unchecked(self, data: Any) -> Any:
        return ml_dtypes.bfloat16(data)

    @property
    def item_size(self) -> int:
        return 2


if "bfloat16" not in data_type_registry.contents:  # the day zarr brings its own, that one stays
    data_type_registry.register("bfloat16", BFloat16)
