"""What the documents show works: their commands are run as they stand, against a running product."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from persister.__main__ import main as persister
from persister.settings import Settings as PersisterSettings
from relay.cli import main as relay_command
from relay.events.base import Kind
from relay.events.registry import REGISTRY
from relay.settings import Settings
from tests.acceptance.running import Relay, environment_with, viewer
from tests.unit.test_deployment import variables

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {
    "make test": "it is what runs this test",
    "docker compose up --detach": "it needs a container engine",
}


def blocks(path: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a document, as (language, text)."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def script(path: Path, relay: Relay) -> str:
    """All commands of a document as one shell script. `relay up` and its two variables are the test's."""
    lines = ["set -euo pipefail"]
    for language, text in blocks(path):
        if language == "sh" and "relay up" not in text:
            lines.append(text)
        elif language == "python":
            lines.append(f"python - <<'PYTHON'\n{text}PYTHON")
    script = "\n".join(lines).replace("http://127.0.0.1:8000", relay.url)
    script = script.replace("http://127.0.0.1:9464", relay.ready["ops_url"])
    return script.replace("http://127.0.0.1:9564", relay.ready["persister_ops_url"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_of_a_document_work(path: Path, relay: Relay) -> None:
    env = environment_with(
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        RELAY_URL=relay.url,
        REDIS_URL=relay.redis_url,
        DATABASE_URL=relay.database_url,
    )
    env.pop("MAKEFLAGS", None)
    relay.ops("/livez", "persister_ops_url")  # which may just have started
    done = subprocess.run(
        ["bash", "-c", script(path, relay)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_told_a_whole_run(relay: Relay) -> None:
    history = relay.http.get(
        "/conversations/1/idea/research-run/run-1/paper-generation-progress", headers=viewer(1)
    )
    steps = [event["step"] for event in history.json()["events"]]
    assert steps == ["plot_aggregation", *["paper_writeup"] * 4]


class Plain:
    """The README's way to post from Python without the client, where nobody listens or somebody answers.

    Its pauses are noted, and not waited for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: httpx.Response) -> None:
        self.pauses: list[float] = []
        self.requests: list[httpx.Request] = []
        left = iter(answers)

        def answer(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return next(left)

        monkeypatch.setenv("TELEMETRY_WEBHOOK_TOKEN", "any")
        monkeypatch.setattr(time, "sleep", self.pauses.append)
        if answers:
            monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(answer)))

    def run(self) -> None:
        text = next(text for _, text in blocks(ROOT / "README.md") if "import httpx" in text)
        exec(text.replace("127.0.0.1:8000", "127.0.0.1:1"), {})  # noqa: S102 - it is what readers will run


def test_posting_as_the_readme_does_raises_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Plain(monkeypatch)
    with pytest.raises(httpx.ConnectError):
        plain.run()
    assert len(plain.pauses) == 5
    assert all(longer > shorter for shorter, longer in pairwise(plain.pauses))


def test_posting_as_the_readme_does_is_the_same_again_and_waits_as_long_as_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = httpx.Response(429, headers={"retry-after": "60"})
    plain = Plain(monkeypatch, later, httpx.Response(503), httpx.Response(204))
    plain.run()
    assert plain.pauses[0] >= 60 > plain.pauses[1]
    assert len({(request.headers["idempotency-key"], request.content) for request in plain.requests}) == 1


def test_posting_as_the_readme_does_raises_what_stays_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for answers in ([httpx.Response(422)], [httpx.Response(503) for _ in range(6)]):
        with monkeypatch.context() as patch:
            plain = Plain(patch, *answers)
            with pytest.raises(httpx.HTTPStatusError):
                plain.run()
            assert len(plain.requests) == len(answers)


def test_what_is_shown_but_not_run_is_known() -> None:
    shown = {
        line.removeprefix("$ ")
        for path in DOCUMENTS
        for language, text in blocks(path)
        if language == "console"
        for line in text.splitlines()
    }
    assert shown == NOT_RUN.keys()


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    names = r"`((?:RELAY|TELEMETRY|REDIS|DATABASE)_[A-Z_]+|OTEL_EXPORTER_OTLP_ENDPOINT)`"
    documented = set(re.findall(names, text))
    assert documented == variables(Settings) | variables(PersisterSettings)


PROTOCOL = ROOT / "docs" / "protocol.md"


def form(kind: type[Kind]) -> str:
    """What the webhook of a kind takes, in the short form of the document."""
    fields = [f'"{name}"{"" if field.is_required() else "?"}' for name, field in kind.model_fields.items()]
    listed = ", ".join(fields)
    if kind.flat:
        return f'{{"run_id", {listed}}}' if listed else '{"run_id"}'
    return f'{{"run_id", "event": {{{listed}}}}}'


def words(schema: Mapping[str, Any]) -> str:
    """The type of a field, and its limits."""
    value, *null = schema.get("anyOf", [schema])
    match value:
        case {"type": "string", "maxLength": most}:
            least = value.get("minLength")
            takes = f"text of {f'{least} to' if least else 'up to'} {most:,} characters"
        case {"type": "string", "format": "date-time"}:
            takes = "time with an offset (RFC 3339)"
        case {"type": "integer", "minimum": least, "maximum": most} if -least == most == 2**53 - 1:
            takes = "whole number, up to 2^53 - 1 either way"
        case {"type": "number", "minimum": least, "maximum": most}:
            takes = f"number from {round(least)} to {round(most)}"
        case _:
            takes = {"number": "any finite number", "object": "object", "boolean": "`true` or `false`"}[
                value["type"]
            ]
    return takes + (", or null" if null == [{"type": "null"}] else "")


def test_what_each_webhook_takes_is_documented() -> None:
    rows = re.findall(r"^\| `POST (/[a-z-]+)` \| `(\w+)` \| `(.*)` \|$", PROTOCOL.read_text(), re.MULTILINE)
    assert rows == [(kind.path, name, form(kind)) for name, kind in REGISTRY.items()]


def test_every_field_is_documented_with_its_type_and_limits() -> None:
    table = (
        PROTOCOL.read_text().partition("| kind | field | takes |\n|---|---|---|\n")[2].partition("\n\n")[0]
    )
    documented: list[tuple[str, str, str]] = []
    for row in table.splitlines():
        kind, names, takes = (cell.strip() for cell in row.strip("|").split("|"))
        of = kind.strip("`") or documented[-1][0]
        documented += [(of, name, takes) for name in re.findall(r"`(\w+)`", names)]
    assert documented == [
        (name, field, words(schema))
        for name, kind in REGISTRY.items()
        for field, schema in kind.model_json_schema().get("properties", {}).items()
    ]


def test_every_command_in_a_table_exists() -> None:
    groups = {"relay": relay_command, "persister": persister}
    for program, name in re.findall(
        r"`(relay|persister) ([a-z-]+)", (ROOT / "docs" / "operations.md").read_text()
    ):
        assert CliRunner().invoke(groups[program], [name, "--help"]).exit_code == 0, (program, name)


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), target
