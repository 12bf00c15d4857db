"""What becomes of memory that a process needs no more: less than by default, in programs that soon need as
much again."""

import ctypes
import gc

THRESHOLDS = (50_000, 20, 20)
"""Objects made before a look at the young ones, and how many of those looks before one at the older."""

KEPT_BYTES = 16 * 1024 * 1024
LARGE_BYTES = KEPT_BYTES // 2

# mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def look_rarely() -> None:
    """Has Python's collector of cycles leave out what start-up made, and look at the rest less often.

    Most of it is freed without the collector, so a look among thousands of viewers or rows finds little; it
    took a third of the time when all viewers came back at once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def keep_freed() -> None:
    """Has the C library keep what was freed, up to KEPT_BYTES in each thread's arena, but for blocks of
    LARGE_BYTES and more.

    By itself it gives much of it back to the kernel at once, so that an answer of 300 kB may cost 250 page
    faults, each time: on a virtual machine a quarter of the time that it takes. (Only glibc can be told.)
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
