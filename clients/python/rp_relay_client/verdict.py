"""What an answer means for a batch. Pure: no I/O."""

import email.utils
import re
import time
from collections.abc import Sequence
from enum import Enum
from http.client import HTTPException
from typing import Any, NamedTuple

from rp_relay_client.transport import Answer


class Meaning(Enum):
    """What to do with the batch."""

    KEPT = "the relay has it"
    AGAIN = "the same again, soon"
    SLOWLY = "the same again, but a person has to act first"
    REFUSED = "never again as it is"


class Verdict(NamedTuple):
    """`why` is for people, and so are `reasons`: each thing that is wrong with what is refused. `wait_s` is
    how long the relay asks to wait; `indexes` are the events that it refuses, if it says which; `too_much` is
    whether it never takes so many at once."""

    meaning: Meaning
    why: str
    reasons: Sequence[str] = ()
    wait_s: float | None = None
    indexes: Sequence[int] = ()
    too_much: bool = False


_REFUSED = (400, 409, 413, 415, 422)
_AGAIN = (408, 425, 429)

_SLUG = re.compile(r"urn:rp-relay:problem:([a-z-]{1,60})")


def judge(answer: Answer) -> Verdict:
    """What the answer means.

    Only 204 means kept: another 2xx is not the relay's, but of something between here and there. A key
    that was "used for another payload" was used for this one, since it names these bytes and no others;
    a newer relay reads them differently, but has them.
    """
    slug = _slug(answer)
    why = f"{answer.status}{f' {slug}' if slug else ''}"
    told = f"{why}{_detail(answer) if slug else ''}"  # a proxy's words may be others each time
    if answer.status == 204 or slug == "idempotency-key-reused":
        return Verdict(Meaning.KEPT, why)
    if answer.status in _REFUSED:
        reasons = _reasons(answer, why) or [told]
        return Verdict(
            Meaning.REFUSED, told, reasons, indexes=_indexes(answer), too_much=answer.status == 413
        )
    if answer.status in _AGAIN or (answer.status >= 500 and slug != "misconfigured"):
        return Verdict(Meaning.AGAIN, why, wait_s=_seconds(answer.retry_after))
    return Verdict(Meaning.SLOWLY, told)


def unreachable(error: OSError | HTTPException) -> Verdict:
    """What it means that there was no answer."""
    reason = getattr(error, "strerror", None) or str(error)
    return Verdict(Meaning.AGAIN, f"{type(error).__name__}{f': {reason}' if reason else ''}")


def _slug(answer: Answer) -> str:
    match = _SLUG.fullmatch(str(answer.problem.get("type")))
    return match[1] if match else ""


def _indexes(answer: Answer) -> list[int]:
    """The index of each event that the relay names, in order."""
    return sorted({loc[0] for loc, _ in _errors(answer) if loc and type(loc[0]) is int and loc[0] >= 0})


def _detail(answer: Answer) -> str:
    """What the relay says to people. It never quotes what it got, and is the same each time."""
    detail = answer.problem.get("detail")
    return f": {detail.rstrip('.')}" if isinstance(detail, str) and detail else ""


def _reasons(answer: Answer, why: str) -> list[str]:
    """What is wrong with the events, each place and message once; the relay says it without quoting them."""
    found = (f"{why}, {'.'.join(map(str, loc[1:]))}: {message}" for loc, message in _errors(answer))
    return list(dict.fromkeys(found))


def _errors(answer: Answer) -> list[tuple[list[Any], str]]:
    """Where and what is wrong, as far as the answer has the form that it should have."""
    errors = answer.problem.get("errors")
    return [
        (error["loc"], str(error.get("msg")))
        for error in (errors if isinstance(errors, list) else ())
        if isinstance(error, dict) and isinstance(error.get("loc"), list)
    ]


def _seconds(retry_after: str | None) -> float | None:
    """The header, which is seconds or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
