"""From bytes to events: what is taken, what is mended, what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import BatchTooLong, InvalidEvent, MalformedJson
from relay.events.intake import MAX_DEPTH, parse_batch, parse_event, parse_lines
from relay.events.kinds import PaperGenerationProgress, RunFinished
from relay.events.registry import REGISTRY
from relay.metrics import UNKNOWN_FIELDS
from tests.factories import EXAMPLES, progress

LARGE = 256 * 1024

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=10,
)


def body(run_id: Any = "run-1", **changes: Any) -> bytes:
    return json.dumps({"run_id": run_id, "event": progress(**changes)}).encode()


def taken(raw: bytes) -> dict[str, Any]:
    """The text of the event in a body, parsed again."""
    text: dict[str, Any] = json.loads(parse_event(PaperGenerationProgress, raw).text)
    return text


def item(**changes: Any) -> dict[str, Any]:
    return {"run_id": "run-1", "kind": "paper_generation_progress", "event": progress(), **changes}


@given(st.dictionaries(texts, json_values, max_size=4))
def test_details_keep_their_value(details: dict[str, Any]) -> None:
    assert taken(body(details=details))["details"] == details


def test_an_event_has_all_its_fields_and_no_others() -> None:
    raw = {"run_id": "run-1", "event": {"step": "s", "progress": 0, "step_progress": 1, "new": 1}, "extra": 2}
    event = parse_event(PaperGenerationProgress, json.dumps(raw).encode())
    assert json.loads(event.text) == {
        "step": "s",
        "substep": None,
        "progress": 0.0,
        "step_progress": 1.0,
        "details": None,
    }


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        (r"a\u0000b", "a\ufffdb"),
        (r"a\ud800b", "a\ufffdb"),
        (r"\udc00", "\ufffd"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud800\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\\u0000", r"\u0000"),
        (r"\\\u0000", "\\\ufffd"),
    ],
)
def test_what_is_no_text_becomes_the_replacement_character(written: str, stored: str) -> None:
    raw = body(substep="HERE").replace(b"HERE", written.encode())
    assert taken(raw)["substep"] == stored
    raw = body(details={"HERE": ["HERE"]}).replace(b"HERE", written.encode())
    assert taken(raw)["details"] == {stored: [stored]}


@pytest.mark.parametrize(
    ("given_", "stored"), [(-1e-7, 0.0), (1.0000009, 1.0), (0, 0.0), (1, 1.0), (0.5, 0.5)]
)
def test_rounding_around_the_range_of_progress_is_clamped(given_: float, stored: float) -> None:
    assert taken(body(progress=given_))["progress"] == stored


@pytest.mark.parametrize("value", ["1", True, None, -0.1, 1.1, [], {}])
def test_progress_is_a_number_from_zero_to_one(value: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        parse_event(PaperGenerationProgress, body(progress=value))
    assert caught.value.errors[0]["loc"] == ["event", "progress"]


@pytest.mark.parametrize("run_id", ["", "x" * 129, "../x", "a/b", "a\nb", "😀", "{0}", 1, None, {}])
def test_a_run_id_is_a_short_plain_word(run_id: Any) -> None:
    with pytest.raises(InvalidEvent):
        parse_event(PaperGenerationProgress, body(run_id))


@pytest.mark.parametrize("beside", [{"event": progress()}, {"success": True}, {"event": {"success": True}}])
def test_a_run_in_the_body_is_the_one_in_the_path(beside: dict[str, Any]) -> None:
    kind = PaperGenerationProgress if "step" in beside.get("event", {}) else RunFinished
    for same in ({}, {"run_id": "run-1"}, {"run_id": None}):
        assert parse_event(kind, json.dumps({**same, **beside}).encode(), "run-1").run_id == "run-1"
    for other in ("run-2", "", 1, ["run-1"]):
        with pytest.raises(InvalidEvent) as caught:
            parse_event(kind, json.dumps({"run_id": other, **beside}).encode(), "run-1")
        assert [error["loc"] for error in caught.value.errors] == [["run_id"]]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"  ",
        b"{",
        b"{'a':1}",
        b'{"a":1,}',
        b"{} {}",
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":"\xff"}',
        b'{"a":"\x01"}',
    ],
)
def test_what_is_not_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedJson):
        parse_event(PaperGenerationProgress, raw)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999"])
def test_a_number_that_json_can_not_hold_is_malformed_wherever_it_stands(number: str) -> None:
    with pytest.raises(MalformedJson):
        parse_event(PaperGenerationProgress, body(details={"x": [7777]}).replace(b"7777", number.encode()))


def test_the_names_of_such_numbers_are_text_like_any_other() -> None:
    assert taken(body(substep="NaN and Infinity"))["substep"] == "NaN and Infinity"


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"in": value}
    return value


def test_nesting_is_bounded() -> None:
    parse_event(PaperGenerationProgress, body(details=nested(MAX_DEPTH - 1)))
    parse_event(PaperGenerationProgress, body(details={"flat": ["[{" * 100] + [[] for _ in range(200)]}))
    with pytest.raises(InvalidEvent, match="errors"):
        parse_event(PaperGenerationProgress, body(details=nested(MAX_DEPTH)))
    with pytest.raises(MalformedJson):
        parse_event(PaperGenerationProgress, body(details={"x": 7777}).replace(b"7777", b"[" * 100_000))


@pytest.mark.parametrize("raw", [b"[]", b'"x"', b"1", b"null"])
def test_a_body_that_is_no_object_is_invalid(raw: bytes) -> None:
    with pytest.raises(InvalidEvent):
        parse_event(PaperGenerationProgress, raw)


def test_errors_never_repeat_the_input() -> None:
    secret = "do-not-repeat-me"
    for raw in (body(secret + "/"), body(step=secret * 20), json.dumps([item(kind=secret)]).encode()):
        with pytest.raises(InvalidEvent) as caught:
            parse_batch(raw, 10, LARGE) if raw.startswith(b"[") else parse_event(PaperGenerationProgress, raw)
        assert secret not in json.dumps(caught.value.errors) + str(caught.value)


def test_the_end_of_a_run_is_stored_as_a_row_of_its_life() -> None:
    event = parse_event(RunFinished, b'{"run_id":"r","success":false,"message":"out of memory"}')
    assert json.loads(event.text) == {
        "event_type": "run_finished",
        "metadata": {"success": False, "message": "out of memory"},
    }


def test_a_batch_keeps_its_order_over_kinds_and_runs() -> None:
    items = [item(run_id=f"run-{number % 3}") for number in range(7)]
    items.append({"run_id": "run-0", "kind": "run_finished", "event": EXAMPLES["run_finished"]})
    events = parse_batch(json.dumps(items).encode(), 10, LARGE)
    assert [(event.run_id, event.kind) for event in events] == [(i["run_id"], i["kind"]) for i in items]
    lines = "\n".join(json.dumps(item) for item in items) + "\n\n"
    assert parse_lines(lines.encode(), 10, LARGE) == events


def test_one_bad_event_fails_the_batch_and_is_named_by_its_index() -> None:
    items = [item(), item(), item(event=progress(progress=2))]
    with pytest.raises(InvalidEvent) as caught:
        parse_batch(json.dumps(items).encode(), 10, LARGE)
    assert caught.value.errors[0]["loc"][0] == 2


@pytest.mark.parametrize(
    ("wrong", "loc", "message"),
    [
        (
            {"kind": "run_log", "event": {"message": 4}},
            ["event", "message"],
            "Input should be a valid string",
        ),
        ({"kind": "run_log"}, ["event"], "Field required"),
        ({"event": {}}, ["kind"], "Field required"),
        ({"kind": "log", "event": {}}, ["kind"], f"Input should be one of {', '.join(REGISTRY)}"),
        ({"kind": None, "event": {}}, ["kind"], f"Input should be one of {', '.join(REGISTRY)}"),
        (7, [], "Input should be an object"),
    ],
)
def test_an_error_in_a_batch_has_its_place_in_the_body(wrong: Any, loc: list[str], message: str) -> None:
    bad = {"run_id": "run-1", **wrong} if isinstance(wrong, dict) else wrong
    with pytest.raises(InvalidEvent) as caught:
        parse_batch(json.dumps([item(), bad]).encode(), 10, LARGE)
    assert [(error["loc"], error["msg"]) for error in caught.value.errors] == [([1, *loc], message)]


def test_an_error_in_a_field_that_may_stand_in_two_places_has_that_where_it_stands() -> None:
    for beside, loc in (({"success": 1}, ["success"]), ({"event": {"success": 1}}, ["event", "success"])):
        with pytest.raises(InvalidEvent) as caught:
            parse_event(RunFinished, json.dumps({"run_id": "run-1", **beside}).encode())
        assert [error["loc"] for error in caught.value.errors] == [loc]


def test_an_event_that_is_nested_too_deep_is_named_by_its_index() -> None:
    items = [item(), item(event=progress(details=nested(MAX_DEPTH)))]
    with pytest.raises(InvalidEvent) as caught:
        parse_batch(json.dumps(items).encode(), 10, LARGE)
    assert caught.value.errors[0]["loc"] == [1, "event"]


def test_a_batch_has_a_limit_and_is_not_empty() -> None:
    assert len(parse_batch(json.dumps([item()] * 3).encode(), 3, LARGE)) == 3
    with pytest.raises(BatchTooLong):
        parse_batch(json.dumps([item()] * 4).encode(), 3, LARGE)
    with pytest.raises(InvalidEvent):
        parse_batch(b"[]", 3, LARGE)


def test_an_event_of_a_batch_is_no_larger_than_one_alone() -> None:
    items = [item(), item(event=progress(details={"text": "x" * LARGE}))]
    with pytest.raises(InvalidEvent) as caught:
        parse_batch(json.dumps(items).encode(), 10, LARGE)
    assert (caught.value.errors[0]["loc"], caught.value.errors[0]["type"]) == ([1, "event"], "too_large")


def test_a_line_holds_one_event() -> None:
    two = json.dumps(item()) + "," + json.dumps(item())
    with pytest.raises(MalformedJson):
        parse_lines(two.encode(), 10, LARGE)


def test_fields_that_nobody_knows_are_counted_wherever_they_are() -> None:
    def counted(kind: str, content: dict[str, Any]) -> int:
        before = UNKNOWN_FIELDS[kind]
        parse_event(REGISTRY[kind], json.dumps({"run_id": "run-1", **content}).encode())
        return UNKNOWN_FIELDS[kind] - before

    paper, finished = PaperGenerationProgress.kind, RunFinished.kind
    assert counted(paper, {"event": progress()}) == 0
    assert counted(paper, {"event": progress(), "tenant": 1}) == 1
    assert counted(paper, {"event": {**progress(), "new": 1}, "tenant": 1}) == 1, "events, not fields"
    assert counted(finished, {"success": True}) == 0
    assert counted(finished, {"success": True, "occurred_at": "2026-01-02T03:04:05Z"}) == 0
    assert counted(finished, {"success": True, "new": 1}) == 1
    assert counted(finished, {"event": {"success": True}}) == 0
    assert counted(finished, {"event": {"success": True}, "new": 1}) == 1
