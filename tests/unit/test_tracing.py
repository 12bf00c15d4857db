"""Whether there are traces, and what is loaded for them and where."""

import os
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from persister.__main__ import main as persister
from relay import tracing
from relay.cli import main as relay
from relay.settings import StoreSettings
from relay.spans import Spans

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize("missing", [tracing.EXPORTER, tracing.EXPORTER.rpartition(".")[0]])
@pytest.mark.parametrize(("program", "words"), [(relay, ["serve", "--port", "0"]), (persister, ["run"])])
def test_where_the_extra_is_missing_it_says_so_at_the_start(
    program: Any, words: list[str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, tracing.EXPORTER)
    monkeypatch.setitem(sys.modules, missing, None)
    refused = CliRunner(env={ENDPOINT: "http://127.0.0.1:9"}).invoke(program, words)
    assert refused.exit_code == 1
    assert "rp-relay[tracing]" in refused.output


def test_an_endpoint_is_a_url_and_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "")
    assert tracing.spans(StoreSettings(), "relay") is None
    for wrong in ("localhost:4317", "grpc://localhost:4317", "http:///v1"):
        monkeypatch.setenv(ENDPOINT, wrong)
        with pytest.raises(ValidationError):
            StoreSettings()
    monkeypatch.setenv(ENDPOINT, "https://collector.example:4318/")
    assert isinstance(tracing.spans(StoreSettings(), "persister"), Spans)


LOADED = """
import sys
import fastapi, redis.asyncio

before = {name for name in sys.modules if name.startswith("opentelemetry")}
import persister.__main__
import relay.app
import relay.cli

relay.app.create_app()
loaded = {name for name in sys.modules if name.startswith("opentelemetry")} - before
loaded |= {"relay.spans", "opentelemetry.sdk.trace", "google.protobuf"} & sys.modules.keys()
print(sorted(loaded))
"""


def test_without_an_endpoint_nothing_of_it_is_loaded_beyond_what_the_framework_and_the_driver_load() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


SERVED = """
import sys
import relay.cli

def serve(listener, workers):
    heavy = {"relay.spans", "opentelemetry.sdk.trace", "google.protobuf", "requests"}
    print(sorted(heavy & sys.modules.keys()))

relay.cli.server.serve = serve
relay.cli.main(["serve", "--port", "0", "--workers", "2"], standalone_mode=False)
"""


def test_with_an_endpoint_it_is_loaded_by_the_workers_and_not_by_their_parent() -> None:
    nowhere = "127.0.0.1:9"
    env = os.environ | {
        ENDPOINT: f"http://{nowhere}",
        "REDIS_URL": f"redis://{nowhere}",
        "DATABASE_URL": f"postgresql://{nowhere}/none",
    }
    done = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "[]\n"
