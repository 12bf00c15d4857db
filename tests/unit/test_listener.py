"""The private listener by itself."""

import logging
import re
import socket

import httpx
import pytest

from relay.listener import ADDRESS, Page, document, listening

PAGES = {"/a": lambda: document(200, {"a": 1})}


def test_it_serves_its_pages_and_nothing_else() -> None:
    with listening("127.0.0.1:0", PAGES) as url:
        answer = httpx.get(f"{url}/a?query=1")
        assert (answer.status_code, answer.json()) == (200, {"a": 1})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["server"] == "rp-relay"
        assert httpx.get(f"{url}/b").status_code == 404
        assert httpx.post(f"{url}/a").status_code == 501
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/a")


def test_processes_with_one_address_take_ports_one_after_the_other() -> None:
    with listening("127.0.0.1:0", PAGES) as first:
        assert first is not None
        with listening(first.removeprefix("http://"), PAGES) as second:
            assert second is not None
            assert second != first
            assert httpx.get(f"{second}/a").status_code == 200


def test_without_an_address_that_it_can_have_work_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("relay.listener.PORTS", 1)
    with listening(None, PAGES) as url:
        assert url is None
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        listening(f"127.0.0.1:{taken.getsockname()[1]}", PAGES) as url,
    ):
        assert url is None
    assert "no port is free" in caplog.text
    with listening("192.0.2.1:9464", PAGES) as url:  # an address that no machine has
        assert url is None
    assert "can not be had at 192.0.2.1:9464" in caplog.text


def test_a_page_that_fails_says_so_without_a_word_of_why(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Page:
        raise ValueError("a secret")

    with caplog.at_level(logging.ERROR), listening("127.0.0.1:0", {"/a": broken}) as url:
        answer = httpx.get(f"{url}/a")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "ValueError" in caplog.text


@pytest.mark.parametrize(
    ("address", "valid"),
    [
        ("127.0.0.1:9464", True),
        ("[::1]:9464", True),
        ("relay-1.internal:1", True),
        ("9464", False),
        (":9464", False),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, valid: bool) -> None:
    assert bool(re.fullmatch(ADDRESS, address)) is valid
