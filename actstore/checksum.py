"""crc32c of any buffer, at memory speed."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np

__all__ = ["crc32c", "crc32c_hex"]


def crc32c(data: Any, start: int = 0) -> int:
    """crc32c of a contiguous buffer, continuing from `start` (the crc of what came before)."""
    # google_crc32c refuses memoryviews but takes arrays, without a copy
    value: int = google_crc32c.extend(start, np.frombuffer(data, dtype=np.uint8))
    return value


def crc32c_hex(data: Any) -> str:
    return f"{crc32c(data):08x}"
