"""The relay, as the load generator speaks to it."""

import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import MARK, Service
from relay.auth import mint_viewer_token

TOKEN = "webhook-token-of-the-benchmarks"
SECRET = "viewer-secret-of-the-benchmarks-0123456789"
CONVERSATION, USER = 7, 42
PATH = "/research-pipeline/events/paper-generation-progress"
BATCH_PATH = "/research-pipeline/events/batch"

EVENT = (
    b'{"step":"paper_writeup","substep":"Reflection 2 of 5 (figures: 4)","progress":0.6125,'
    b'"step_progress":0.45,"details":{"words_written":4210,"sections_completed":5,%b}}'
) % MARK


@dataclass(frozen=True)
class Relay(Service):
    """A web worker of ours."""

    def post(self, run: str, events: int) -> bytes:
        if events == 1:
            return request(PATH, b'{"run_id":"%b","event":%b}' % (run.encode(), EVENT))
        one = b'{"kind":"paper_generation_progress","run_id":"%b","event":%b}' % (run.encode(), EVENT)
        return request(BATCH_PATH, b"[" + b",".join([one] * events) + b"]")

    def view(self, run: str) -> bytes:
        path = f"/conversations/{CONVERSATION}/idea/research-run/{run}/events?resume=true"
        token = mint_viewer_token(SECRET, USER, 86_400)
        lines = [f"GET {path} HTTP/1.1", "Host: relay", f"Authorization: Bearer {token}"]
        return "\r\n".join([*lines, "Accept: text/event-stream", ""]).encode()

    def claim(self, runs: Sequence[str]) -> None:
        """Makes the runs known, with their owner."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        body = json.dumps({"conversation_id": CONVERSATION, "user_id": USER})
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        for run in runs:
            connection.request("PUT", f"/research-pipeline/runs/{run}", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 204:
                raise RuntimeError(f"a run could not be claimed: {answer.status}")
        connection.close()


def relay(port: int) -> Relay:
    return Relay("ours", port, b'"initial"', to_blank=True)


def request(path: str, body: bytes) -> bytes:
    """A POST with the webhook's token."""
    head = f"POST {path} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
