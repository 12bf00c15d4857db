"""A viewer in Python: one run, from its beginning to its end, over as many connections as it takes."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
from httpx_sse import connect_sse

from relay.errors import RelayError

RECONNECT_S = 1.0
IDLE_S = 60.0
"""Four keep-alives: a connection that is silent for longer is dead."""


class NotAdmitted(RelayError):
    """The service does not let this viewer in; its answer is the message."""


def _say_nothing(trouble: str) -> None:
    """What programs that watch do about it."""


def watch(
    url: str, conversation_id: int, run_id: str, token: str, away: Callable[[str], None] = _say_nothing
) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Every message of the stream, `{"type": ..., "data": ...}`, until the run is over, with its id; None
    where it tells of state and has none.

    While the service can not be reached it is asked again for ever; `away` is told once each time.
    Raises NotAdmitted where asking again would not help.
    """
    path = f"{url}/conversations/{conversation_id}/idea/research-run/{run_id}/events"
    headers = {"authorization": f"Bearer {token}"}
    delay = 0.0
    told = False
    with httpx.Client(timeout=httpx.Timeout(10, read=IDLE_S), headers=headers) as client:
        while True:
            time.sleep(delay)
            delay = RECONNECT_S
            try:
                with connect_sse(client, "GET", path, params={"resume": "true"}) as source:
                    status = source.response.status_code
                    if status == 204:
                        return
                    if 400 <= status < 500 and status != httpx.codes.TOO_MANY_REQUESTS:
                        source.response.read()
                        raise NotAdmitted(_refusal(source.response))
                    source.response.raise_for_status()
                    for event in source.iter_sse():
                        told = False
                        if not event.data:
                            continue  # no event by the standard, only a new time to wait
                        before = client.headers.get("last-event-id")
                        client.headers["last-event-id"] = event.id
                        message: dict[str, Any] = json.loads(event.data)
                        yield None if event.id == before else int(event.id), message
                        if message["type"] == "complete":
                            return
            except tuple(_MISTAKES) as error:
                raise NotAdmitted(_MISTAKES[type(error)]) from None  # the words may quote the token
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not told:
                    away(_trouble(url, error))
                told = True


_MISTAKES: Mapping[type[Exception], str] = {
    httpx.InvalidURL: "The address is none; check what follows http:// or https://.",
    httpx.UnsupportedProtocol: "The address must begin with http:// or https://.",
    httpx.LocalProtocolError: "The token holds a character that no token has.",
}


def _refusal(response: httpx.Response) -> str:
    """What the relay says, or what can be said of another one's answer."""
    if response.headers.get("content-type") == "application/problem+json":
        detail: str = response.json()["detail"]
        return detail
    return f"The answer is {response.status_code}, and not from a relay; check the address."


def _trouble(url: str, error: httpx.TransportError | httpx.HTTPStatusError) -> str:
    """For people. The address is without what may be a password."""
    where = httpx.URL(url).netloc.decode()
    if isinstance(error, httpx.HTTPStatusError):
        return f"{where} answers {error.response.status_code}"
    return f"Can not watch at {where}: {str(error) or type(error).__name__}"
