"""Figures as they are counted, and as Prometheus reads them."""

import json

from prometheus_client.parser import text_string_to_metric_families

from persister.health import pages
from persister.metrics import Figures, collect
from relay import metrics
from relay.exposition import counted, page
from relay.metrics import Count, Counts, Histogram


def test_prometheus_reads_what_was_counted() -> None:
    happened = Count("x_happened", "Happened")
    happened.value += 2
    by_kind = Counts("x_kinds", "Kinds", "kind", ["a", "b"])
    by_kind["a"] += 1
    sizes = Histogram("x_sizes", "Sizes", (1, 10))
    for size in (1, 5, 10, 11):
        sizes.observe(size)
    text = page(lambda: counted([happened, by_kind, sizes]))().body.decode()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("x_")
    }
    assert samples == {
        ("x_happened_total",): 2,
        ("x_kinds_total", "a"): 1,
        ("x_kinds_total", "b"): 0,
        ("x_sizes_bucket", "1.0"): 1,
        ("x_sizes_bucket", "10.0"): 3,
        ("x_sizes_bucket", "+Inf"): 4,
        ("x_sizes_count",): 4,
        ("x_sizes_sum",): 27,
    }


def test_every_instrument_is_shown_and_named_once() -> None:
    made = [value for value in vars(metrics).values() if isinstance(value, Count | Counts | Histogram)]
    assert [id(each) for each in made] == [id(each) for each in metrics.ALL]
    assert len({each.name for each in made}) == len(made)


class Loop:
    """A loop that has a batch, a failure, and what it lost."""

    def __init__(self) -> None:
        self.figures = Figures()
        self.busy_s = 1.5
        self.lost = 3


def test_the_figures_of_a_persister_are_those_of_its_loops() -> None:
    loops = [Loop(), Loop()]
    loops[1].figures.stored(7, 0.02)
    loops[0].figures.failed("redis", "TimeoutError")
    loops[1].figures.failed("redis", "TimeoutError")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in collect(loops)
        for sample in family.samples
    }
    assert samples["persister_rows_total", "1"] == 7
    assert samples["persister_batch_rows_sum", "1"] == 7
    assert samples["persister_insert_seconds_count", "0"] == 0
    assert samples["persister_retries_total", "redis"] == 2
    assert samples["persister_lost_entries_total", "0"] == 3
    assert samples["persister_busy_seconds", "0"] == 1.5
    loops[0].figures.went_on()
    assert (loops[0].figures.trouble, loops[1].figures.trouble) == (None, "TimeoutError")


def test_a_persister_says_what_it_waits_for_and_whether_it_is_stuck() -> None:
    loops = [Loop(), Loop()]
    shown = pages(loops, 120)
    assert [shown[path]().status for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
    loops[1].figures.failed("postgres", "The archive is not available; try again later.")
    answer = shown["/readyz"]()
    assert (answer.status, json.loads(answer.body)["checks"]) == (
        503,
        {"shard 0": "ok", "shard 1": "The archive is not available; try again later."},
    )
    assert shown["/livez"]().status == 200, "to start it again would not help"
    loops[0].busy_s = 121
    assert shown["/livez"]().status == 503
