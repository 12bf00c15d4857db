"""What a call of the emitter costs the pipeline, with the relay up, down, and slow.

    python benchmarks/emitter.py [--events 20000] [--paced 2000]

"burst" is a loop that does nothing but emit; "paced" emits once a millisecond and sleeps in between, as a
busy pipeline might; "busy" emits as often while another thread of the pipeline computes without a pause.
Only the call itself is timed. The event is a usual one, of some 200 bytes. The rows "none" are for a callback
that does nothing but append to a deque: what the machine takes for any call at that moment.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from relays import TOKEN, relay_up, slow_relay

from rp_relay_client import Emitter, PaperGenerationProgressEvent

NOBODY = "http://127.0.0.1:9"


Callback = Callable[[PaperGenerationProgressEvent], None]


def cost_us(callback: Callback, events: int, pause_s: float) -> list[float]:
    """The microseconds that each call took."""
    costs = []
    for number in range(events):
        details = {"number": number, "words_written": 3786, "sections_completed": 8}
        event = PaperGenerationProgressEvent("paper_writeup", "Section 8 of 8", 0.63, 0.66, details)
        since = time.perf_counter_ns()
        callback(event)
        costs.append((time.perf_counter_ns() - since) / 1000)
        if pause_s:
            time.sleep(pause_s)
    return costs


def busy_cost_us(callback: Callback, events: int) -> list[float]:
    """The same beside a thread that always wants the interpreter."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        return cost_us(callback, events, 0.001)
    finally:
        over.set()
        thread.join()


def row(relay: str, load: str, costs: Sequence[float], dropped: int) -> str:
    p50, p99 = statistics.median(costs), statistics.quantiles(costs, n=100)[98]
    return f"{relay:8}{load:8}{len(costs):>8}{p50:>10.1f}{p99:>10.1f}{max(costs):>10.0f}{dropped:>10}"


def loads(events: int, paced: int) -> dict[str, Callable[[Callback], list[float]]]:
    return {
        "burst": lambda callback: cost_us(callback, events, 0),
        "paced": lambda callback: cost_us(callback, paced, 0.001),
        "busy": lambda callback: busy_cost_us(callback, paced // 4),
    }


def measure(relay: str, url: str, events: int, paced: int) -> None:
    """Prints three rows of the table."""
    for load, run in loads(events, paced).items():
        with tempfile.TemporaryDirectory() as spool:
            emitter = Emitter(url, TOKEN, f"run-{relay}-{load}", spool_dir=spool)
            cost_us(emitter, 100, 0)  # the first call starts the threads
            print(row(relay, load, run(emitter), emitter.stats().dropped), flush=True)
            emitter.close(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--paced", type=int, default=2_000)
    arguments = parser.parse_args()
    print("The caller's cost of one event, in microseconds")
    print(f"{'relay':8}{'load':8}{'events':>8}{'p50':>10}{'p99':>10}{'max':>10}{'dropped':>10}")
    for load, run in loads(arguments.events, arguments.paced).items():
        print(row("none", load, run(deque[PaperGenerationProgressEvent]().append), 0), flush=True)
    with relay_up() as running:
        measure("up", running.ready["url"], arguments.events, arguments.paced)
    measure("down", NOBODY, arguments.events, arguments.paced)
    with slow_relay(2.0) as url:
        measure("slow", url, arguments.events, arguments.paced)


if __name__ == "__main__":
    main()
