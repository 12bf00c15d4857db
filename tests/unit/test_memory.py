"""What is done with memory that was freed."""

import subprocess
import sys

FAULTS = """
import resource
from relay.memory import keep_freed
{setting}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytes(300_000), bytes(300_000)
before = faults()
for _ in range(100):
    answer = [bytes(300_000) + b"x" for _ in range(8)]
print(faults() - before)
"""


def faults(setting: str) -> int:
    """Page faults of a process that makes and drops large answers."""
    argv = [sys.executable, "-c", FAULTS.format(setting=setting)]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def test_what_was_freed_is_there_for_the_next_answer() -> None:
    assert faults("keep_freed()") < 2_000 < faults("")
