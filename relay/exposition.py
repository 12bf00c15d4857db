"""Figures as Prometheus reads them. Made at each scrape, from what is there then."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from relay.listener import Page
from relay.metrics import Count, Counts, Histogram

Collect = Callable[[], Iterable[Metric]]


class _Now(Collector):
    """What is found when it is asked for."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: what is found may need a server that is away."""
        return ()


def page(collect: Collect) -> Callable[[], Page]:
    """The page of a process: these figures, and what the system says of the process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Now(collect))
    return lambda: Page(200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry))


def counted(instruments: Iterable[Count | Counts | Histogram]) -> Iterator[Metric]:
    """What was counted so far."""
    for instrument in instruments:
        if isinstance(instrument, Histogram):
            yield histogram(instrument.name, instrument.text, {"": instrument})
        elif isinstance(instrument, Counts):
            yield counter(instrument.name, instrument.text, instrument.label, dict(instrument))
        else:
            yield counter(instrument.name, instrument.text, "", {"": instrument.value})


def counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """By the value of the label, if there is one."""
    family = CounterMetricFamily(name, text, labels=_labels(label))
    for of, value in values.items():
        family.add_metric([of] if label else [], value)
    return family


def gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """By the value of the label, if there is one."""
    family = GaugeMetricFamily(name, text, labels=_labels(label))
    for of, value in values.items():
        family.add_metric([of] if label else [], value)
    return family


def histogram(name: str, text: str, values: Mapping[str, Histogram], label: str = "") -> Metric:
    """By the value of the label, if there is one."""
    family = HistogramMetricFamily(name, text, labels=_labels(label))
    for of, each in values.items():
        bounds = [*map(floatToGoString, each.bounds), "+Inf"]
        reached = list(accumulate(each.counts))
        family.add_metric([of] if label else [], list(zip(bounds, reached, strict=True)), each.sum)
    return family


def _labels(label: str) -> list[str]:
    return [label] if label else []
