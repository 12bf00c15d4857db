"""Entries: what is read is what was written, or nothing."""

import contextlib
import json
from zlib import crc32

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.events.intake import parse_event
from relay.events.registry import REGISTRY
from relay.stream import entry as module
from relay.stream.calls import AppendCall
from relay.stream.entry import (
    SEAL_BYTES,
    MalformedEntry,
    NewEvent,
    decode,
    decode_record,
    head_of,
    kind_of,
    named,
    run_of,
    traced,
    traceparent_of,
    without_trace,
)
from relay.stream.keys import EPOCH_MS, ShardKeys, StreamId, event_id

ID = f"{EPOCH_MS}-0".encode()
TEXT = b'{"step":"paper_writeup","progress":0.5}'
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CALL = AppendCall(ShardKeys(0), 1000, 20_000, 1000)

names = st.from_regex(r"[A-Za-z0-9._:-]{1,30}", fullmatch=True)
members = st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False) | st.text(), min_size=1)
texts = members.map(lambda event: json.dumps(event, ensure_ascii=False).encode(errors="replace"))
traceparents = st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)


HEAD = b"run-1 toy"


def sealed(whole: bytes) -> list[bytes]:
    """The fields of an entry with a seal that fits."""
    return [b"e", b"%b%08x" % (whole, crc32(whole))]


def packed(event: NewEvent, key: str | None = None) -> list[bytes]:
    """The words of the call that appends an event; the last one is its entry."""
    reader = hiredis.Reader()
    reader.feed(CALL.packed([([event], key)], 0))
    words = reader.gets()
    assert isinstance(words, list)
    return words


def written(event: NewEvent) -> list[bytes]:
    """The fields of an event's entry, as the call that appends it has them."""
    return [b"e", packed(event)[-1]]


def test_the_seal_is_no_part_of_the_text() -> None:
    assert decode(ID, sealed(HEAD + TEXT), 0)[1:] == ("run-1", "toy", TEXT)


@given(names, names, texts)
def test_an_entry_says_of_what_run_and_kind_it_is(run: str, kind: str, text: bytes) -> None:
    item = written(NewEvent(run, kind, text))
    assert item == sealed(head_of(run, kind) + text)
    assert (run_of(item[1]), kind_of(item[1])) == (run, kind)
    assert decode(ID, item, 0) == (event_id(StreamId.parse(ID), 0), run, kind, text)
    assert named(ID, item, 0) == (run, event_id(StreamId.parse(ID), 0))


def test_names_may_be_as_long_as_a_webhook_takes_them() -> None:
    run, kind = 128 * "r", 128 * "k"
    item = written(NewEvent(run, kind, TEXT))
    assert decode(ID, item, 0)[1:] == (run, kind, TEXT)
    assert (run_of(item[1]), kind_of(item[1])) == (run, kind)


@pytest.mark.parametrize(
    ("entry", "run"),
    [
        (b"", ""),
        (b"run-1", ""),
        (b" toy", ""),
        (b"\xff toy", "\ufffd"),
        (b"a" * 129 + b" toy", "a" * 129),
        (b"a" * 300 + b" toy", ""),
        (b"a/b toy", "a/b"),
    ],
)
def test_what_names_no_run_is_of_none(entry: bytes, run: str) -> None:
    assert run_of(entry) == run
    assert named(ID, [b"e", entry], 0) is None
    for item in ([b"e", entry], sealed(entry), sealed(entry + TEXT)):
        with pytest.raises(MalformedEntry, match="damaged"):
            decode(ID, item, 0)


@pytest.mark.parametrize("fields", [[], [b"e"], [b"r", b"1"], [b"e", b"1", b"k", b"2"], None])
def test_an_entry_has_one_field(fields: list[bytes]) -> None:
    with pytest.raises(MalformedEntry, match="does not have the field of an event"):
        decode(ID, fields, 0)


@pytest.mark.parametrize("text", [TEXT, b"{}", TEXT + b"0" * SEAL_BYTES, TEXT[:-1]])
def test_what_has_no_seal_is_no_entry(text: bytes) -> None:
    with pytest.raises(MalformedEntry, match="its checksum does not fit"):
        decode(ID, [b"e", HEAD + text], 0)


def test_a_seal_that_ends_as_json_does_is_no_sign_that_there_is_none() -> None:
    e, whole = sealed(HEAD + TEXT)
    with pytest.raises(MalformedEntry, match="its checksum does not fit"):
        decode(ID, [e, whole[:-1] + b"}"], 0)


@pytest.mark.parametrize(
    "name", [b"", b'a","b":"', b"a\tb", b"a/b", b"{a}", b"a" * 129, "ä".encode(), b"a\n"]
)
def test_a_name_that_no_webhook_takes_is_in_no_entry(name: bytes) -> None:
    for head in (name + b" toy", b"run-1 " + name):
        with pytest.raises(MalformedEntry, match="does not begin with a run and a kind"):
            decode(ID, sealed(head + TEXT), 0)


@pytest.mark.parametrize(("signs", "taken"), [(10, True), (11, False)])
def test_an_entry_may_be_so_large_and_no_larger(
    signs: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_TEXT", 10)
    text = b'{"a":' + b"1" * (signs - 6) + b"}"
    with contextlib.nullcontext() if taken else pytest.raises(MalformedEntry, match="larger than any event"):
        assert decode(ID, sealed(HEAD + text), 0).text == text


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=50, max_size=50))
def test_no_text_is_larger_than_four_times_its_body(numbers: list[float]) -> None:
    kind = REGISTRY["paper_generation_progress"]
    for written_as in (f"{number:e}".replace("e+", "e").replace(".000000", "") for number in numbers):
        details = f'{{"n":[{",".join([written_as] * 300)}]}}'
        event = f'{{"step":"s","progress":1,"step_progress":1,"details":{details}}}'
        text = parse_event(kind, f'{{"run_id":"r","event":{event}}}'.encode(), None).text
        assert len(text) < 4 * len(event)


def test_a_flipped_bit_is_noticed_wherever_it_is() -> None:
    e, whole = sealed(HEAD + TEXT)
    for place in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        with pytest.raises(MalformedEntry, match="damaged"):
            decode(ID, [e, bytes(broken)], 0)


@pytest.mark.parametrize("length", range(SEAL_BYTES + 3))
def test_the_rest_of_an_entry_is_no_entry(length: int) -> None:
    rest = sealed(HEAD + TEXT)[1][-length:] if length else b""
    for entry in (rest, HEAD + rest):
        with pytest.raises(MalformedEntry):
            decode(ID, [b"e", entry], 0)


@given(names, names, texts, traceparents)
def test_with_or_without_a_trace_the_same_is_read(run: str, kind: str, text: bytes, traceparent: str) -> None:
    event = NewEvent(run, kind, text)
    plain, carrying = written(event), written(traced(event, traceparent))
    assert decode(ID, plain, 0)[1:] == decode(ID, carrying, 0)[1:] == (run, kind, text)
    assert decode_record(ID, plain, 0) == decode_record(ID, carrying, 0)
    assert (traceparent_of(plain[1]), traceparent_of(carrying[1])) == (None, traceparent)
    assert without_trace(plain[1]) == plain[1]
    assert without_trace(carrying[1])[:-SEAL_BYTES] == plain[1][:-SEAL_BYTES]


def test_what_carries_no_trace_is_not_searched_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRACED", None)
    for entry in (written(NewEvent("run-1", "toy", TEXT))[1], TEXT, b"", b"~"):
        assert (traceparent_of(entry), without_trace(entry)) == (None, entry)


@given(names, names, texts, traceparents)
def test_a_repeat_is_known_by_its_key_whatever_its_trace(
    run: str, kind: str, text: bytes, traceparent: str
) -> None:
    event = NewEvent(run, kind, text)
    without, carrying = packed(event, "key"), packed(traced(event, traceparent), "key")
    assert without[:-1] == carrying[:-1], "the digest is among these"
    assert without[-1] != carrying[-1]
    assert packed(NewEvent(run, kind, text[:-1] + b',"more":1}'), "key")[:-1] != without[:-1]


def test_the_digest_of_an_event_is_that_of_other_versions() -> None:
    assert b"a7d6ea501f141342c9326049d57a0b2e" in packed(NewEvent("run-1", "toy", TEXT), "key")


@given(texts, traceparents, st.data())
def test_damage_to_an_entry_with_a_trace_is_noticed(
    text: bytes, traceparent: str, data: st.DataObject
) -> None:
    e, whole = written(traced(NewEvent("run-1", "toy", text), traceparent))
    place = data.draw(st.integers(0, 8 * len(whole) - 1))
    broken = bytearray(whole)
    broken[place // 8] ^= 1 << place % 8
    with pytest.raises(MalformedEntry, match="damaged"):
        decode(ID, [e, bytes(broken)], 0)


@pytest.mark.parametrize("missing", range(1, len(TRACEPARENT) + 1 + SEAL_BYTES))
def test_an_entry_that_ends_within_its_trace_or_seal_is_none(missing: int) -> None:
    e, whole = written(traced(NewEvent("run-1", "toy", TEXT), TRACEPARENT))
    with pytest.raises(MalformedEntry):
        decode(ID, [e, whole[:-missing]], 0)


@pytest.mark.parametrize(
    "behind",
    [
        b"~",
        TRACEPARENT.encode(),
        TRACEPARENT.encode() + b"~~",
        TRACEPARENT.encode()[1:] + b"~",
        TRACEPARENT.upper().encode() + b"~",
        TRACEPARENT.encode() + b"~" + TRACEPARENT.encode() + b"~",
    ],
)
def test_what_is_sealed_with_a_text_and_is_no_trace_makes_it_no_entry(behind: bytes) -> None:
    with pytest.raises(MalformedEntry, match="not a JSON object"):
        decode(ID, sealed(HEAD + TEXT + behind), 0)


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_whatever_is_in_an_entry_it_is_an_object_or_none(text: bytes, carrying: bool, fitting: bool) -> None:
    raw = HEAD + text + (TRACEPARENT.encode() + b"~" if carrying else b"")
    item = sealed(raw) if fitting else [b"e", raw]
    traceparent_of(item[1])
    with contextlib.suppress(MalformedEntry):
        read = decode(ID, item, 0).text
        assert (read[:1], read[-1:]) == (b"{", b"}")
