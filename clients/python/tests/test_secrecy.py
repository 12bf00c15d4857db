"""The token shows itself nowhere but in the header."""

import copy
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from fake_relay import FakeRelay, Reply
from support import SWIFT, event, files_in, wait_until

from rp_relay_client import Emitter

CANARY = "canary-4711-of-the-token"


def test_the_token_is_not_on_disk_nor_in_the_log_nor_in_a_repr(
    relay: FakeRelay,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    relay.token = CANARY
    echo = {"type": "urn:x", "errors": [{"loc": [0, CANARY], "msg": f"Bearer {CANARY}\nforged line"}]}
    relay.replies.extend([Reply(401, echo), Reply(503, echo), Reply(400, echo)])
    emitter = Emitter(relay.url, CANARY, "run-1", spool_dir=tmp_path, settings=SWIFT)
    with caplog.at_level(logging.DEBUG):
        emitter(event(1))
        assert emitter.flush(20)
        relay.always = Reply(503)
        emitter(event(2))
        wait_until(lambda: len(relay.requests) >= 5, "it to be under way")
        emitter.close(0)

    files = files_in(tmp_path)
    assert files, "the event is on disk"
    assert not any(CANARY.encode() in path.read_bytes() for path in files)
    assert CANARY not in repr(emitter) + str(vars(emitter)) + caplog.text + "".join(capfd.readouterr())
    assert "forged line" in caplog.text
    assert not any("\n" in record.message for record in caplog.records)


def test_what_waits_is_for_the_eyes_of_its_owner_only(relay: FakeRelay, tmp_path: Path) -> None:
    relay.always = Reply(503)
    emitter = Emitter(relay.url, CANARY, "run-1", spool_dir=tmp_path / "spool", settings=SWIFT)
    emitter(event(1))
    wait_until(lambda: emitter.stats().spooled, "a spool")
    for path in files_in(tmp_path):
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0
    emitter.close(0)


@pytest.mark.parametrize("token", ["", "  ", "two words", "new\nline", "naïve", f"{CANARY}\r\nX-Evil: 1"])
def test_a_token_that_no_header_can_hold_is_refused_without_being_quoted(token: str) -> None:
    with pytest.raises(ValueError, match="token") as refused:
        Emitter("http://relay", token, "run-1")
    assert CANARY not in str(refused.value)


def test_the_line_end_of_a_token_from_a_file_does_not_matter(relay: FakeRelay, tmp_path: Path) -> None:
    relay.token = CANARY
    with Emitter(relay.url, CANARY + "\n", "run-1", spool_dir=tmp_path, settings=SWIFT) as emitter:
        emitter(event(1))
    assert relay.numbers() == [1]


def test_a_checkpoint_that_holds_an_emitter_does_not_give_the_token_away(tmp_path: Path) -> None:
    emitter = Emitter("http://relay", CANARY, "run-1", spool_dir=tmp_path)
    checkpoint = pickle.dumps({"callback": emitter})
    assert CANARY.encode() not in checkpoint
    assert pickle.loads(checkpoint)["callback"] is emitter
    assert copy.deepcopy(emitter) is emitter

    (tmp_path / "checkpoint").write_bytes(checkpoint)
    load = (
        "import pickle, sys; e = pickle.load(open(sys.argv[1], 'rb'))['callback']; print(e._secret.reveal())"
    )
    argv = [sys.executable, "-c", load, str(tmp_path / "checkpoint")]
    elsewhere = {**os.environ, "TELEMETRY_WEBHOOK_TOKEN": "token-of-the-environment"}
    told = subprocess.run(argv, env=elsewhere, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "token-of-the-environment"
    elsewhere.pop("TELEMETRY_WEBHOOK_TOKEN")
    untold = subprocess.run(argv, env=elsewhere, capture_output=True, text=True, check=True)
    assert untold.stdout.strip() == "unknown"
    assert "TELEMETRY_WEBHOOK_TOKEN" in untold.stderr
