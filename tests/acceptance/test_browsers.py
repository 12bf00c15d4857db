"""What the contract says about browsers, shown with browsers: they reconnect, and they know when to stop."""

import contextlib
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.acceptance.browsers import PROGRAMS, Site, browser, site_for
from tests.acceptance.running import Relay, Viewer, relay_up
from tests.factories import new_run_id, progress
from tests.faults.failover import BUS_PORTS
from tests.waiting import wait_until

CLOSED = 2
"""`EventSource.CLOSED`."""

README = Path(__file__).parents[2] / "README.md"

HOSTILE = (
    '<img src=x onerror="ran = true">',
    "<script>ran = true</script>",
    "</script><script>ran = true</script>",
    '"><svg onload="ran = true"></svg>',
    '<a href="javascript:ran = true">javascript:ran = true</a>',
    "&lt;b&gt;\u2028</progress>",
)
"""Texts that a page which takes them for HTML would run, or show as something else."""

REPORTING = """
<script>
  let ran = false;
  const shown = [];
  const elements = () => document.querySelectorAll("*").length;
  const before = elements();
  const report = () => {
    shown.push(document.getElementById("step").textContent);
    const failure = ran ? "a script ran" : elements() !== before ? "an element came in" : null;
    fetch("/report", { method: "POST", body: JSON.stringify({ failure, shown }) });
  };
  stream.addEventListener("message", () => setTimeout(report, 50));
</script>
"""
"""What a test adds to the page of the README. The pause is for what an element that had got in would run."""

MARGIN_S = 1.0
"""How much later than told a browser may be on a busy machine."""

in_both_browsers = pytest.mark.parametrize("program", PROGRAMS)


@pytest.fixture(scope="module")
def port() -> int:
    """Of the page's origin. Each test binds it again, so it is none that others are given in between."""
    for port in random.sample(BUS_PORTS, 10):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def relay(directory: Path, port: int) -> Iterator[Relay]:
    """One for these tests alone, since they kill its web process."""
    with relay_up(directory / "browsers", RELAY_ALLOWED_ORIGINS=f"http://127.0.0.1:{port}") as running:
        yield running


@pytest.fixture
def site(relay: Relay, port: int) -> Iterator[Site]:
    with site_for(relay, port) as serving:
        yield serving


@pytest.fixture
def run_id(relay: Relay) -> str:
    """A run that has two events already."""
    name = new_run_id()
    relay.claim(name)
    _post(relay, name, 2)
    return name


def _post(relay: Relay, run_id: str, count: int) -> None:
    for _ in range(count):
        relay.progress(run_id, progress())


def _stream(relay: Relay, run_id: str) -> str:
    return f"{urlsplit(relay.run_url(run_id)).path}/events"


def _archived(relay: Relay, run_id: str, count: int) -> list[str]:
    """The events of the archive as the page has to show them."""
    return [f"{event['id']} {event['details']['number']}" for event in relay.archived(run_id, count)]


def _restart_web(relay: Relay, how: signal.Signals) -> None:
    """Returns when the old process is gone; the new one may still be starting."""
    pid = relay.kill("serve", "--fd", how=how)
    wait_until(lambda: not psutil.pid_exists(pid), "the web process to end")


@in_both_browsers
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_an_event_source_misses_and_repeats_nothing_when_the_web_process_is_replaced(
    relay: Relay, site: Site, run_id: str, program: str, how: signal.Signals
) -> None:
    with browser(program, site.page("EventSource", f"{_stream(relay, run_id)}?resume=true")):
        site.shown(2)
        _post(relay, run_id, 1)
        before = site.shown(3)

        with site.keeping_away():
            _restart_web(relay, how)
            _post(relay, run_id, 2)
        site.shown(5)
        _post(relay, run_id, 1)
        after = site.shown(6)

    assert after == _archived(relay, run_id, 6)
    assert site.view["initials"] == 1
    last_seen = before[-1].split()[0]
    assert [request.last_event_id for request in site.requests] == [None, last_seen]


@in_both_browsers
@pytest.mark.parametrize("reader", ["cookie", "ticket"])
def test_a_page_of_another_origin_sees_events_by_its_cookie_or_a_ticket(
    relay: Relay, site: Site, run_id: str, program: str, reader: str
) -> None:
    """Straight from the relay, whose address it knows. The cookie is for the host, on whichever port; under
    another name it does not go along."""
    host, token = ("127.0.0.1", "") if reader == "cookie" else ("localhost", site.token)
    stream = f"{relay.url.replace('127.0.0.1', host)}{_stream(relay, run_id)}?resume=true"
    with browser(program, f"{site.page(reader, stream)}#{token}"):
        site.shown(2)
        _post(relay, run_id, 1)
        assert site.shown(3) == _archived(relay, run_id, 3)
    assert site.requests == []


@in_both_browsers
def test_an_event_source_stays_closed_once_the_run_is_over(
    relay: Relay, site: Site, run_id: str, program: str
) -> None:
    with browser(program, site.page("EventSource", f"{_stream(relay, run_id)}?resume=true")):
        site.shown(2)
        relay.finish(run_id)
        view = site.wait(lambda view: view["readyState"] == CLOSED, "a closed EventSource")
        stream, farewell = site.requests
        assert stream.retry_s is not None
        would_return = time.monotonic() + stream.retry_s + MARGIN_S
        wait_until(lambda: time.monotonic() > would_return, "the time when browsers come back")
        assert site.requests == [stream, farewell]

    assert view["status"] == "completed"
    assert view["shown"] == _archived(relay, run_id, 2)
    over = Viewer(relay, run_id)
    over.ended()
    assert farewell.last_event_id == view["lastEventId"] == str(over.position)
    assert (stream.status, farewell.status) == (200, 204)


@in_both_browsers
def test_a_fetch_reader_sees_every_event_however_often_it_connects(
    relay: Relay, site: Site, run_id: str, program: str
) -> None:
    with browser(program, site.page("fetch", _stream(relay, run_id))):
        site.shown(2)
        _post(relay, run_id, 1)
        site.shown(3)
        assert len(site.requests) == 1
        for count, lose in ((5, site.cut), (7, lambda: _restart_web(relay, signal.SIGKILL)), (9, site.cut)):
            lose()
            _post(relay, run_id, 2)
            site.shown(count)
        relay.finish(run_id)
        view = site.wait(lambda view: view["ends"] > 1, "the end, live and after one more connect")

    assert view["shown"] == _archived(relay, run_id, 9)
    assert view["lost"] >= 3
    assert set(view["openings"]) == {"initial"}
    assert {request.last_event_id for request in site.requests} == {None}


def test_the_page_of_the_readme_shows_markup_as_text_and_runs_none(relay: Relay, site: Site) -> None:
    """In one browser: what a text is to a page has nothing to do with streams."""
    (sample,) = re.findall(r"^```html\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    run_id = new_run_id()
    relay.claim(run_id)
    sample_run = "/conversations/1/idea/research-run/run-1/events"
    assert sample_run in sample
    site.html = sample.replace(sample_run, _stream(relay, run_id)) + REPORTING

    relay.progress(run_id, progress(step=HOSTILE[0]))
    with browser("chromium", site.page("", "")):
        for count, text in enumerate(HOSTILE, 1):
            if count > 1:
                relay.progress(run_id, progress(step=text))
            assert site.shown(count)[-1] == text
