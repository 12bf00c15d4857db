"""Entries: what is read is what was written, or nothing."""

from zlib import crc32

import pytest

from relay.stream.entry import SEAL_BYTES, MalformedEntry, decode, seal_of
from relay.stream.keys import EPOCH_MS

ID = f"{EPOCH_MS}-0".encode()
TEXT = b'{"step":"paper_writeup","progress":0.5}'


def fields(run_id: bytes, kind: bytes, text: bytes) -> list[bytes]:
    return [b"r", run_id, b"k", kind, b"e", text]


def sealed(run_id: bytes, kind: bytes, text: bytes) -> list[bytes]:
    return fields(run_id, kind, b"%b%08x" % (text, crc32(text, seal_of(run_id, kind))))


def test_the_seal_is_no_part_of_the_text() -> None:
    assert decode(ID, sealed(b"run-1", b"toy", TEXT), 0)[1:] == ("run-1", "toy", TEXT)


def test_an_entry_of_before_there_were_seals_is_taken_as_it_is() -> None:
    assert decode(ID, fields(b"run-1", b"toy", TEXT), 0).text == TEXT


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
