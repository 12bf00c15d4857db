"""The files for Prometheus and Grafana, held against what a real worker and a real persister show."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from relay import metrics
from relay.metrics import Count, Counts, Histogram
from tests.acceptance.running import Relay
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
SCRAPED: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/relay.json").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
MANUAL = (ROOT / "docs/operations.md").read_text()

RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES = [
    *((rule["alert"], rule["expr"]) for rule in RULES),
    *((title, target["expr"].replace("$__rate_interval", "1m")) for title, target in PANELS),
]
OF_PROMETHEUS = {"job": {job["job_name"] for job in SCRAPED["scrape_configs"]}}
"""Labels that Prometheus adds by itself, with their values; and it knows `up`."""

Series = dict[str, dict[str, set[str]]]
"""Of each metric, the values of each label."""


@pytest.fixture(scope="module")
def series(relay: Relay) -> Series:
    found: Series = {"up": {}}
    for place in ("ops_url", "persister_ops_url"):
        wait_until(lambda at=place: relay.ops("/readyz", at).status_code == 200, place)  # type: ignore[misc]
        for family in text_string_to_metric_families(relay.ops("/metrics", place).text):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    return found


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """The metrics that a query reads. Raises ValueError where it is none."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def wanted(matcher: promql_parser.Matcher) -> Iterator[str]:
    """The values that a matcher names."""
    yield from matcher.value.split("|") if matcher.op == promql_parser.MatchOp.Re else [matcher.value]


@pytest.mark.parametrize(("name", "query"), QUERIES, ids=[name for name, _ in QUERIES])
def test_a_query_reads_what_there_is(name: str, query: str, series: Series) -> None:
    read = selectors(query)
    assert read
    for selector in read:
        assert selector.name in series, selector.name
        for matcher in selector.matchers.matchers:
            values = OF_PROMETHEUS.get(matcher.name) or series[selector.name][matcher.name]
            assert set(wanted(matcher)) <= values, matcher.name


@pytest.mark.parametrize(("name", "query"), QUERIES, ids=[name for name, _ in QUERIES])
def test_a_query_groups_by_labels_that_there_are(name: str, query: str, series: Series) -> None:
    (metric, *_) = selectors(query)
    known = {"le", "instance", *OF_PROMETHEUS, *series[str(metric.name)]}
    for labels in re.findall(r"by \(([a-z_, ]+)\)", query):
        assert set(labels.split(", ")) <= known, labels


def test_a_query_with_a_mistake_is_seen_as_one() -> None:
    with pytest.raises(ValueError, match="invalid promql"):
        selectors("sum by (rate(x[5m]))")


def test_every_figure_that_is_counted_is_on_the_dashboard() -> None:
    shown = " ".join(query for _, query in QUERIES)
    for instrument in metrics.ALL:
        assert isinstance(instrument, Count | Counts | Histogram)
        assert instrument.name in shown, instrument.name


def test_every_alert_is_explained_in_the_manual_and_says_how_urgent_it_is() -> None:
    section = MANUAL.split("## Alerts\n")[1].split("\n## ")[0]
    explained = re.findall(r"^\*\*(\w+)\*\* ", section, re.MULTILINE)
    assert explained == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))


def test_prometheus_scrapes_the_private_listeners_of_the_compose_file() -> None:
    assert SCRAPED["rule_files"] == ["alerts.yml"]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in SCRAPED["scrape_configs"]}
    listens = {"relay": "RELAY_OPS_LISTEN", "persister": "RELAY_PERSISTER_OPS_LISTEN"}
    for name, variable in listens.items():
        service = COMPOSE["services"][name]
        port = int(service["environment"][variable].rpartition(":")[2])
        workers = re.search(r"--workers (\d+)", service["command"])
        count = int(workers[1]) if workers else 1
        assert jobs[name] == [f"{name}:{port + number}" for number in range(count)]
        assert not any(str(port) in published for published in service.get("ports", []))
