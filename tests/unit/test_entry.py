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
    seal_of,
    traced,
    traceparent_of,
    without_trace,
)
from relay.stream.keys import EPOCH_MS, ShardKeys

ID = f"{EPOCH_MS}-0".encode()
TEXT = b'{"step":"paper_writeup","progress":0.5}'
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CALL = AppendCall(ShardKeys(0), 1000, 20_000, 1000)

names = st.from_regex(r"[A-Za-z0-9._:-]{1,30}", fullmatch=True)
members = st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False) | st.text(), min_size=1)
texts = members.map(lambda event: json.dumps(event, ensure_ascii=False).encode(errors="replace"))
traceparents = st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)


def fields(run_id: bytes, kind: bytes, text: bytes) -> list[bytes]:
    return [b"r", run_id, b"k", kind, b"e", text]


def sealed(run_id: bytes, kind: bytes, text: bytes) -> list[bytes]:
    return fields(run_id, kind, b"%b%08x" % (text, crc32(text, seal_of(run_id, kind))))


def packed(event: NewEvent, key: str | None = None) -> list[bytes]:
    """The words of the call that appends an event; the last one is the field `e` of its entry."""
    reader = hiredis.Reader()
    reader.feed(CALL.packed([([event], key)], 0))
    words = reader.gets()
    assert isinstance(words, list)
    return words


def written(event: NewEvent) -> list[bytes]:
    """The fields of an event's entry, as the call that appends it has them."""
    return fields(event.run_id.encode(), event.kind.encode(), packed(event)[-1])


def test_the_seal_is_no_part_of_the_text() -> None:
    assert decode(ID, sealed(b"run-1", b"toy", TEXT), 0)[1:] == ("run-1", "toy", TEXT)


@pytest.mark.parametrize("text", [TEXT, b"", b"{}", TEXT + b"0" * SEAL_BYTES, TEXT[:-1]])
def test_what_has_no_seal_is_no_entry(text: bytes) -> None:
    with pytest.raises(MalformedEntry, match="its checksum does not fit"):
        decode(ID, fields(b"run-1", b"toy", text), 0)


def test_a_seal_that_ends_as_json_does_is_no_sign_that_there_is_none() -> None:
    whole = sealed(b"run-1", b"toy", TEXT)
    with pytest.raises(MalformedEntry, match="its checksum does not fit"):
        decode(ID, [*whole[:5], whole[5][:-1] + b"}"], 0)


@pytest.mark.parametrize(
    "name", [b"", b'a","b":"', b"a\tb", b"a/b", b"{a}", b"a" * 129, "ä".encode(), b"a\n"]
)
def test_a_name_that_no_webhook_takes_is_in_no_entry(name: bytes) -> None:
    def fitting(run_id: bytes, kind: bytes) -> list[bytes]:
        return fields(run_id, kind, b"%b%08x" % (TEXT, crc32(TEXT, crc32(b"%b %b" % (run_id, kind)))))

    assert decode(ID, fitting(b"run-1", b"toy"), 0).text == TEXT
    for item in (fitting(name, b"toy"), fitting(b"run-1", name)):
        with pytest.raises(MalformedEntry, match="a name in it"):
            decode(ID, item, 0)


@pytest.mark.parametrize(("signs", "taken"), [(10, True), (11, False)])
def test_an_entry_may_be_so_large_and_no_larger(
    signs: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_TEXT", 10)
    text = b'{"a":' + b"1" * (signs - 6) + b"}"
    with contextlib.nullcontext() if taken else pytest.raises(MalformedEntry, match="larger than any event"):
        assert decode(ID, sealed(b"run-1", b"toy", text), 0).text == text


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=50, max_size=50))
def test_no_text_is_larger_than_four_times_its_body(numbers: list[float]) -> None:
    kind = REGISTRY["paper_generation_progress"]
    for written_as in (f"{number:e}".replace("e+", "e").replace(".000000", "") for number in numbers):
        details = f'{{"n":[{",".join([written_as] * 300)}]}}'
        event = f'{{"step":"s","progress":1,"step_progress":1,"details":{details}}}'
        text = parse_event(kind, f'{{"run_id":"r","event":{event}}}'.encode(), None).text
        assert len(text) < 4 * len(event)


@pytest.mark.parametrize("damaged", [1, 3, 5], ids=["the run", "the kind", "the text or its seal"])
def test_a_flipped_bit_is_noticed_wherever_it_is(damaged: int) -> None:
    whole = sealed(b"run-1", b"toy", TEXT)
    for place in range(8 * len(whole[damaged])):
        broken = bytearray(whole[damaged])
        broken[place // 8] ^= 1 << place % 8
        with pytest.raises(MalformedEntry, match="damaged"):
            decode(ID, [*whole[:damaged], bytes(broken), *whole[damaged + 1 :]], 0)


@pytest.mark.parametrize("length", range(SEAL_BYTES + 3))
def test_the_rest_of_an_entry_is_no_entry(length: int) -> None:
    rest = sealed(b"run-1", b"toy", TEXT)[5][-length:] if length else b""
    with pytest.raises(MalformedEntry):
        decode(ID, fields(b"run-1", b"toy", rest), 0)


@given(names, names, texts, traceparents)
def test_with_or_without_a_trace_the_same_is_read(run: str, kind: str, text: bytes, traceparent: str) -> None:
    event = NewEvent(run, kind, text)
    plain, carrying = written(event), written(traced(event, traceparent))
    assert decode(ID, plain, 0)[1:] == decode(ID, carrying, 0)[1:] == (run, kind, text)
    assert decode_record(ID, plain, 0) == decode_record(ID, carrying, 0)
    assert (traceparent_of(plain[5]), traceparent_of(carrying[5])) == (None, traceparent)
    assert without_trace(plain[5]) == plain[5]
    assert without_trace(carrying[5])[:-SEAL_BYTES] == text


def test_what_carries_no_trace_is_not_searched_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRACED", None)
    for field in (written(NewEvent("run-1", "toy", TEXT))[5], TEXT, b"", b"~"):
        assert (traceparent_of(field), without_trace(field)) == (None, field)


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
    whole = written(traced(NewEvent("run-1", "toy", text), traceparent))
    place = data.draw(st.integers(0, 8 * len(whole[5]) - 1))
    broken = bytearray(whole[5])
    broken[place // 8] ^= 1 << place % 8
    with pytest.raises(MalformedEntry, match="damaged"):
        decode(ID, [*whole[:5], bytes(broken)], 0)


@pytest.mark.parametrize("missing", range(1, len(TRACEPARENT) + 1 + SEAL_BYTES))
def test_an_entry_that_ends_within_its_trace_or_seal_is_none(missing: int) -> None:
    whole = written(traced(NewEvent("run-1", "toy", TEXT), TRACEPARENT))[5]
    with pytest.raises(MalformedEntry):
        decode(ID, fields(b"run-1", b"toy", whole[:-missing]), 0)


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
        decode(ID, sealed(b"run-1", b"toy", TEXT + behind), 0)


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_whatever_is_in_an_entry_it_is_an_object_or_none(text: bytes, carrying: bool, fitting: bool) -> None:
    raw = text + (TRACEPARENT.encode() + b"~" if carrying else b"")
    item = sealed(b"run-1", b"toy", raw) if fitting else fields(b"run-1", b"toy", raw)
    traceparent_of(item[5])
    with contextlib.suppress(MalformedEntry):
        read = decode(ID, item, 0).text
        assert (read[:1], read[-1:]) == (b"{", b"}")
