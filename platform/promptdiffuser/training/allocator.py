"""Keeping the memory that an update or a decision frees for the next one."""

import ctypes
import sys

# glibc's malloc.h; its own limits move too, but only up to 32 MiB, which activations exceed.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK_KEPT, MOST_KEPT = 1 << 30, (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let this process keep blocks that it frees, up to 2 GiB of them.

    An update on a CPU allocates and frees the same large activations each time, and so does a decision that computes
    windows anew. By default glibc takes every block from the kernel anew, which clears its pages: a tenth of an update
    at batch 256, a fifth of a decision for 32 windows. Where the C library is another one, this does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
