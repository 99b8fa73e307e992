"""Keeping memory that is needed again at once, instead of giving it back to the system and asking for it anew in every
layer.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 2**31 - 1  # most free bytes at the end of the heap that stay
_OWN_MAPPING = 64 * 2**20
"""Larger blocks go back when they are freed: a heap of whole volumes and of maps at full resolution has gaps between
them that nothing fits into. A U-Net over 96 × 160 × 160 voxels with 61 outputs took 3.0 instead of 4.0 GiB so, and a
twentieth more time.
"""


def reuse_freed_memory() -> bool:
    """Let the process keep the feature maps' memory between layers, for commands that run a network; a process-wide
    setting.

    With its defaults the C library of Linux returns every block above 32 MiB when it is freed, and the system clears
    its pages again when
    the next layer asks for one: a tenth of a forward pass on a CPU.

    Returns:
        Whether anything was set: only glibc is known.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _OWN_MAPPING)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
