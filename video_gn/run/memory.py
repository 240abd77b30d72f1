"""Lets the process keep the memory that it frees, for what it allocates next."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_VARIABLE = "VIDEO_GN_KEEP_MEMORY"
# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell glibc to keep what is freed: a network's activations on a CPU are freed and allocated anew in every step.

    glibc gives large blocks back to the system at once, which hands them out again page by page, each filled with
    zeros and each a page fault: a quarter of a training step's time. The price is memory: what is free lies in the
    gaps between what is not (5 to 33% more at the highest; it does not grow over the steps).

    With VIDEO_GN_KEEP_MEMORY=0, a user's own setting of glibc's malloc or another C library, nothing changes, and the
    result is False.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    own = any(name.startswith("MALLOC_") for name in environment) or "malloc" in environment.get("GLIBC_TUNABLES", "")
    if own or environment.get(_VARIABLE, "1") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none; Windows has no CDLL(None)
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
