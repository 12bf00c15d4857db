"""From a webhook's body to what a browser hands to the page: any text comes out as it went in, through two
parsers that know nothing of ours, however the network cuts the stream."""

import itertools
import json
from collections.abc import Iterator, Sequence

import h11
import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import example, given
from hypothesis import strategies as st

from relay import sse
from relay.errors import MalformedPosition
from relay.events.intake import parse_event
from relay.events.kinds import PaperGenerationProgress
from relay.hub import Burst, chunk
from relay.sse import Frame, Framing
from relay.stream.entry import decode, frame
from relay.stream.keys import EPOCH_MS, StreamId, event_id
from tests.factories import entry
from tests.unit.test_sse import parse

texts = st.text(
    st.sampled_from(
        "\r\n\0\t :\\\"'{}\u2028\u2029\x85\x0b\x0c\x1e\ufeff\ufffe\ud800\udbff\udc00\udfff\U0001f600"
    )
    | st.characters(),
    max_size=20,
)
details = st.dictionaries(texts, texts | st.lists(texts, max_size=3), min_size=1, max_size=3)


def mended(value: object) -> object:
    """What is kept of a value: JSON pairs surrogates by itself, and what is no text becomes U+FFFD."""
    if isinstance(value, str):
        paired = json.loads(json.dumps(value))
        return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in paired)
    if isinstance(value, list):
        return [mended(member) for member in value]
    assert isinstance(value, dict)
    return {mended(name): mended(member) for name, member in value.items()}


def frame_of(number: int, value: object, raw: bool) -> Frame:
    """The frame of an event that came in by the webhook, written with escapes or without."""
    event = {"step": "s", "substep": None, "progress": 0, "step_progress": 0, "details": value}
    written = json.dumps({"run_id": "run-1", "event": event})
    if raw:
        written = json.dumps(
            {"run_id": "run-1", "event": {**event, "details": mended(value)}}, ensure_ascii=False
        )
    taken = parse_event(PaperGenerationProgress, written.encode())
    stream_id = f"{EPOCH_MS + number}-0".encode()
    ((name, sealed),) = entry(taken).items()
    made = frame(decode(stream_id, [name, sealed], 0).record)
    assert made is not None
    return made


def unchunked(wire: bytes) -> bytes:
    """The body of a chunked answer, read by an HTTP parser."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + wire)
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        body += event.data if isinstance(event, h11.Data) else b""
    return body


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for begin, end in itertools.pairwise(places):
        yield data[begin:end]


def handed_out(body: bytes, cuts: Sequence[int]) -> list[tuple[str, str]]:
    """The messages as (data, last event id), by a client library that gets the stream in pieces."""
    headers = {"content-type": f"{sse.CONTENT_TYPE}; charset=utf-8"}
    source = EventSource(httpx.Response(200, headers=headers, content=pieces(body, cuts)))
    return [(event.data, event.id) for event in source.iter_sse() if event.data]


@pytest.mark.parametrize("framing", [Framing.PLAIN, Framing.RESUMABLE, Framing.LABELLED])
@given(st.lists(details, min_size=1, max_size=4), st.booleans(), st.lists(st.integers(0), max_size=8))
@example([{"\r\n\r\n": "data: x\n\nid: 5\n"}], False, [1, 2, 3])
@example([{"\ud83d": ["\ud83d\ude00", "\ude00\ud83d", "\0"]}], True, list(range(300)))
def test_any_text_gets_to_the_page(
    framing: Framing, values: list[dict[str, object]], raw: bool, cuts: list[int]
) -> None:
    frames = [frame_of(number, value, raw) for number, value in enumerate(values)]
    news = Burst(frames[:2]), *(Burst([made]) for made in frames[2:])
    chunks = [chunk(sse.greeting(1000)), *(burst.encode(2 * framing + 1) for burst in news), b"0\r\n\r\n"]
    body = unchunked(chunk(sse.KEEP_ALIVE).join(chunks[:-1]) + chunks[-1])
    plain = sse.KEEP_ALIVE.join([sse.greeting(1000), *(burst.encode(2 * framing) for burst in news)])
    assert body == plain, "both ways of writing carry the same"

    messages = handed_out(body, cuts)
    assert [json.loads(data)["data"]["details"] for data, _ in messages] == [
        mended(value) for value in values
    ]
    ids = [event_id(StreamId(EPOCH_MS + number, 0), 0) for number in range(len(values))]
    assert [id for _, id in messages] == ["" if framing is Framing.PLAIN else str(id) for id in ids]
    assert parse(body.decode())[0] == messages, "by the letter of the standard as well"


@given(texts)
def test_no_text_ends_a_line_of_the_stream(text: str) -> None:
    block = frame_of(1, {"text": text}, False).block(Framing.RESUMABLE)
    assert block.count(b"\n") == 3
    assert b"\r" not in block
    assert b"\0" not in block
    block.decode()


@given(texts)
def test_what_is_no_number_is_no_position(text: str) -> None:
    with pytest.raises(MalformedPosition):
        sse.parse_position(text + "x")
