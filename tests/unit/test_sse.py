"""Frames, read back by a parser written from the standard, and positions."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import sse
from relay.errors import MalformedPosition
from relay.sse import Framing
from relay.stream.keys import MAX_EVENT_ID

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def parse(stream: str) -> tuple[list[tuple[str, str]], str]:
    """The messages of a stream as an EventSource hands them out, (data, last event id), after the WHATWG
    text: lines end with CR LF, LF or CR; a block without data is no message."""
    messages: list[tuple[str, str]] = []
    data: list[str] = []
    last_id = ""
    for line in stream.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line and data:
            messages.append(("\n".join(data), last_id))
        if not line:
            data = []
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            last_id = value
    return messages, last_id


@given(st.lists(st.tuples(st.integers(0, MAX_EVENT_ID), texts), max_size=20), st.sampled_from(Framing))
def test_an_independent_parser_reads_back_what_was_framed(
    events: list[tuple[int, str]], framing: Framing
) -> None:
    frames = [
        sse.Frame(id, "run-1", [("log", json.dumps({"text": text}, ensure_ascii=False).encode())])
        for id, text in events
    ]
    wire = sse.greeting(1000) + sse.KEEP_ALIVE.join(frame.block(framing) for frame in frames)
    messages, _ = parse((wire + sse.goodbye(1000)).decode())
    assert [json.loads(data)["data"]["text"] for data, _ in messages] == [text for _, text in events]
    assert [id for _, id in messages] == ["" if framing is Framing.PLAIN else str(id) for id, _ in events]


def test_a_block_begins_with_data_or_with_its_id() -> None:
    frame = sse.Frame(7311, "run-1", [("complete", b"{}")])
    assert frame.block(Framing.PLAIN) == b'data: {"type":"complete","data":{}}\n\n'
    assert frame.block(Framing.RESUMABLE) == b'id: 7311\ndata: {"type":"complete","data":{}}\n\n'
    labelled = b'id: 7311\ndata: {"type":"complete","run_id":"run-1","data":{}}\n\n'
    assert frame.block(Framing.LABELLED) == labelled


def test_state_goes_before_its_event_and_does_not_move_the_position() -> None:
    frame = sse.Frame(7311, "run-1", [("run_update", b"{}"), ("run_event", b"{}")])
    messages, position = parse("id: 5\n\n" + frame.block(Framing.RESUMABLE).decode())
    assert [(json.loads(data)["type"], id) for data, id in messages] == [
        ("run_update", "5"),
        ("run_event", "7311"),
    ]
    assert position == "7311"
    labelled = b'data: {"type":"run_update","run_id":"run-1","data":{}}\n\n'
    news = b'id: 7311.0\ndata: {"type":"run_event","run_id":"run-1","data":{}}\n\n'
    assert frame.block(Framing.LABELLED, "7311.0") == labelled + news


@pytest.mark.parametrize("data", [b'{"a":\n1}', b'{"a":\r1}'])
def test_data_of_several_lines_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="one line"):
        sse.Frame(1, "run-1", [("log", data)])


@given(st.integers(0, MAX_EVENT_ID))
def test_a_position_is_any_id_that_the_stream_can_have_sent(id: int) -> None:
    assert sse.parse_position(str(id)) == id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "-1",
        "+1",
        "1-2-3",
        "$",
        "+",
        ">",
        "1.0",
        " 1",
        "1\n",
        "٣",
        str(2**53),
        str(2**64),
        "9" * 10_000,
    ],
)
def test_what_the_stream_never_sent_is_no_position(text: str) -> None:
    with pytest.raises(MalformedPosition):
        sse.parse_position(text)
