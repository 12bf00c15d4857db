"""Python's collector of cycles, for processes that handle many small objects and make few cycles."""

import gc

THRESHOLDS = (50_000, 20, 20)
"""Objects made before a look at the young ones, and how many of those looks before one at the older."""


def look_rarely() -> None:
    """Leaves out what start-up made, and looks at the rest less often.

    Most of it is freed without the collector, so a look among thousands of viewers or rows finds little; it
    took a third of the time when all viewers came back at once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
