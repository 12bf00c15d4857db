"""Several web hosts behind a real nginx and a real Caddy, with the configurations that we ship."""

import contextlib
import json
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from relay.embedded import free_port
from relay.processes import Part, start, stop, wait_ready
from tests.acceptance.balancing import Balancer, CurlViewer, caddy, nginx, worker
from tests.acceptance.running import CONVERSATION, USER, Relay, viewer
from tests.canaries import TOKEN
from tests.factories import new_run_id, progress
from tests.waiting import wait_until

RUN = f"/conversations/{CONVERSATION}/idea/research-run"
EVENTS = "/research-pipeline/events/paper-generation-progress"
WRITER = ("--header", f"authorization: Bearer {TOKEN}")


class Hosts:
    """Two web workers behind both balancers."""

    def __init__(
        self, balancers: dict[str, Balancer], parts: list[tuple[Part, subprocess.Popen[bytes]]]
    ) -> None:
        self.balancers = balancers
        self._parts = parts

    def stop_one(self) -> None:
        """In its ordinary way: its viewers are sent off, and nobody listens at its port afterwards."""
        stop(*self._parts.pop())

    def post(self, run_id: str, number: int, *words: str, by: str = "nginx") -> tuple[str, str]:
        """Status and version of HTTP of the answer."""
        body = json.dumps({"run_id": run_id, "event": progress(number)})
        return self.balancers[by].ask(EVENTS, *WRITER, *words, "--json", body)[:2]

    def claimed(self) -> str:
        """A run that the viewer owns."""
        run_id = new_run_id()
        owner = json.dumps({"conversation_id": CONVERSATION, "user_id": USER})
        path = f"/research-pipeline/runs/{run_id}"
        assert self.balancers["nginx"].ask(path, *WRITER, "--request", "PUT", "--json", owner)[0] == "204"
        return run_id


@pytest.fixture(scope="module")
def hosts(relay: Relay, directory: Path) -> Iterator[Hosts]:
    place = Path(tempfile.mkdtemp(dir=directory))
    ports = [free_port(), free_port()]
    parts = [(part, start(part)) for part in (worker(relay, port, place) for port in ports)]
    try:
        for part, process in parts:
            wait_ready(part, process)
        with nginx(place, ports) as first, caddy(place / "caddy", ports) as second:
            yield Hosts({"nginx": first, "caddy": second}, parts)
    finally:
        while parts:
            stop(*parts.pop())


def test_what_the_relay_says_gets_through_while_a_body_is_still_coming(hosts: Hosts, place: Path) -> None:
    """Not with Caddy 2.6, which now and then breaks the answer off."""
    large = place / "large.json"
    large.write_bytes(b"[" + b" " * 8_500_000 + b"]")
    status, _, body = hosts.balancers["nginx"].ask(EVENTS, *WRITER, "--json", f"@{large}")
    assert (status, json.loads(body)["type"]) == ("413", "urn:rp-relay:problem:body-too-large")


@pytest.mark.parametrize("by", ["nginx", "caddy"])
def test_who_asks_from_where_gets_through_and_tickets_are_in_no_log(hosts: Hosts, by: str) -> None:
    run_id = hosts.claimed()
    balancer = hosts.balancers[by]
    cookie = ("--header", f"cookie: relay_token={viewer()['authorization'].removeprefix('Bearer ')}")
    path = f"{RUN}/{run_id}/paper-generation-progress"
    for version in ("--http1.1", "--http2"):
        same, other = (("--header", f"origin: {origin}") for origin in (balancer.url, "https://localhost"))
        assert balancer.ask(path, version, *cookie, *same)[0] == "200"
        assert balancer.ask(path, version, *cookie, *other)[0] == "403"

    assert balancer.ask(f"{path}?ticket=once")[0] == "401"
    wait_until(lambda: balancer.log.count(path) >= 5, "a line for each")
    assert "ticket" not in balancer.log


def test_viewers_see_events_at_once_and_go_on_at_the_other_host_without_gap_or_repeat(hosts: Hosts) -> None:
    run_id = hosts.claimed()
    path = f"{RUN}/{run_id}/events"
    assert hosts.post(run_id, 1, "--http2") == ("204", "2")
    with contextlib.ExitStack() as stack:

        def watch(balancer: Balancer, version: str, position: int | None = None) -> CurlViewer:
            made = CurlViewer(balancer, path, version, position)
            stack.callback(made.close)
            wait_until(lambda: made.messages, "the first frame")
            return made

        versions = ("2", "2", "1.1", "1.1")
        viewers = [watch(by, version) for by in hosts.balancers.values() for version in versions]
        assert hosts.post(run_id, 2, "--http1.1", by="caddy") == ("204", "1.1")
        for each in viewers:
            each.wait(1, 2)

        hosts.stop_one()
        wait_until(lambda: sum(each.ended for each in viewers) == 4, "half of the streams to end")
        gone = [each for each in viewers if each.ended]
        stayed = [each for each in viewers if not each.ended]
        every = {(by, version) for by in hosts.balancers.values() for version in versions}
        for part in (gone, stayed):
            assert {(each.balancer, each.version) for each in part} == every
        for number in (3, 4):  # of which round robin takes at least one to the host that is gone
            assert hosts.post(run_id, number)[0] == "204"
        returned = [watch(each.balancer, each.version, each.position) for each in gone]
        assert hosts.post(run_id, 5)[0] == "204"
        for each in stayed:
            each.wait(1, 2, 3, 4, 5)
        for each in returned:
            each.wait(3, 4, 5)


Balancing = Callable[[Path, Sequence[int]], AbstractContextManager[Balancer]]


class Closing:
    """A host that reads a request and closes the connection: nobody knows what became of it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                head = connection.recv(65536)
                if not head:
                    return
                if b"/livez" in head:
                    connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                else:
                    self.requests.append(head)

    def close(self) -> None:
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join(20)
        self._listener.close()


@pytest.mark.parametrize("balancing", [nginx, caddy])
def test_a_post_that_may_have_been_taken_is_not_sent_again(place: Path, balancing: Balancing) -> None:
    with contextlib.ExitStack() as stack:
        hosts = [Closing(), Closing()]
        for host in hosts:
            stack.callback(host.close)
        with balancing(place, [host.port for host in hosts]) as balancer:
            assert balancer.ask(EVENTS, "--json", "{}")[0] == "502"
            assert sum(len(host.requests) for host in hosts) == 1
            assert balancer.ask("/conversations/1/idea/research-run/r/paper-generation-progress")[0] == "502"
            assert sum(len(host.requests) for host in hosts) > 1
            assert b"x-forwarded-for: 127.0.0.1" in hosts[0].requests[-1].lower()
            assert f"host: localhost:{balancer.port}".encode() in hosts[0].requests[-1].lower()
