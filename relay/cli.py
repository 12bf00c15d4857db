"""The command `relay`. Signals and exit codes live here."""

import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
import httpx
from pydantic import ValidationError

from relay import demo as demonstration
from relay import embedded, logs, migrate, server
from relay.auth import mint_viewer_token
from relay.errors import RelayError
from relay.processes import Part, Supervisor
from relay.settings import Settings, explain
from relay.watch import watch

DATA_DIR = Path(".relay-data")
SECRETS = "secrets.json"
"""In the data directory: the webhook token and the viewers' secret, where the environment has none."""


@click.group()
@click.version_option(package_name="rp-relay")
def main() -> None:
    """Carries the events of research pipelines to live viewers and to an archive."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--fd", type=int, help="Take this listening socket instead of host and port.")
def serve(host: str, port: int, workers: int, fd: int | None) -> None:
    """Run the web service."""
    logs.configure(_settings().log_format)
    try:
        listener = server.listen(host, port) if fd is None else socket.socket(fileno=fd)
    except OSError as error:
        raise click.ClickException(f"Can not listen on {host}:{port}: {error.strerror}") from error
    server.serve(listener, workers)


@main.command("migrate")
def migrate_() -> None:
    """Bring the database's schema up to date."""
    settings = _settings()
    logs.configure(settings.log_format)
    migrate.upgrade(settings.database_url.get_secret_value())


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--data-dir", default=DATA_DIR, show_default=True, type=click.Path(path_type=Path, file_okay=False)
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--persisters", default=1, show_default=True, type=click.IntRange(min=1))
def up(host: str, port: int, data_dir: Path, workers: int, persisters: int) -> None:
    """Run everything on this machine, with embedded servers unless REDIS_URL and DATABASE_URL say where.

    Once all is ready, prints one line of JSON: where it is, and how to get in.
    """
    os.environ.setdefault("RELAY_LOG_FORMAT", "text")
    logs.configure(_settings().log_format)
    stopping = _stop_on_signals()
    with _everything(host, port, data_dir, workers, persisters) as (supervisor, ready):
        click.echo(json.dumps(ready))
        sys.stdout.flush()
        supervisor.watch(stopping.wait)


@main.command()
@click.option("--speed", default=120.0, show_default=True, help="How many times faster than it was recorded.")
@click.option(
    "--trace", default="paper_generation.ndjson", show_default=True, help="A recorded run, or a path to one."
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Default: a temporary one."
)
@click.option("--keep", is_flag=True, help="Leave everything running afterwards, to look around.")
def demo(speed: float, trace: str, data_dir: Path | None, keep: bool) -> None:
    """Play a recorded run through the real thing, and count what arrived."""
    logs.configure("text", logging.ERROR)
    stopping = _stop_on_signals()
    recorded = demonstration.load_trace(trace)
    with (
        demonstration.directory(data_dir) as directory,
        _everything("127.0.0.1", 0, directory, 1, 1) as (supervisor, ready),
    ):
        report = demonstration.play(ready, directory / "spool", recorded, speed, stopping)
        if keep and not stopping.is_set():
            click.echo(json.dumps(ready))
            click.echo("Everything is still running; Ctrl-C stops it.")
            supervisor.watch(stopping.wait)
    if not report.whole:
        raise SystemExit(1)


@main.command()
@click.option("--user", required=True, type=int, help="The user's id.")
@click.option("--ttl", default=3600, show_default=True, help="Seconds until it expires.")
@click.option("--data-dir", default=DATA_DIR, show_default=True, type=click.Path(path_type=Path))
def token(user: int, ttl: int, data_dir: Path) -> None:
    """Print a viewer's token, made with RELAY_VIEWER_SECRET or else with the secret of `relay up`."""
    if (data_dir / SECRETS).exists():
        os.environ.update(_secrets(data_dir))
    secret = _settings().viewer_secret
    if secret is None:
        raise click.ClickException("Set RELAY_VIEWER_SECRET to the secret that the service uses.")
    click.echo(mint_viewer_token(secret.get_secret_value(), user, ttl))


@main.command()
@click.argument("conversation", type=int)
@click.argument("run_id", metavar="RUN")
@click.option("--url", envvar="RELAY_URL", default="http://127.0.0.1:8000", show_default=True)
@click.option("--token", envvar="RELAY_TOKEN", required=True, help="A viewer's token, or set RELAY_TOKEN.")
def tail(conversation: int, run_id: str, url: str, token: str) -> None:
    """Show a run in the terminal until it is over."""
    try:
        for _, message in watch(url, conversation, run_id, token):
            click.echo(json.dumps(message, ensure_ascii=False))
    except RelayError as error:
        raise click.ClickException(str(error)) from error


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        raise click.ClickException(explain(error)) from error


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping


@contextmanager
def _everything(
    host: str, port: int, data_dir: Path, workers: int, persisters: int
) -> Iterator[tuple[Supervisor, dict[str, object]]]:
    """All processes, ready, and what `relay up` prints about them."""
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor()
    try:
        env = _for_developers() | _secrets(data_dir)
        if "REDIS_URL" not in os.environ:
            part, env["REDIS_URL"] = embedded.valkey(data_dir / "valkey")
            supervisor.add(part)
        if "DATABASE_URL" not in os.environ:
            part, env["DATABASE_URL"] = embedded.postgres(data_dir / "postgres")
            supervisor.add(part)
        os.environ.update(env)
        settings = _settings()
        migrate.upgrade(settings.database_url.get_secret_value())
        with server.listen(host, port) as listener:
            url = f"http://{host}:{listener.getsockname()[1]}"
            argv = [sys.executable, "-m", "relay", "serve", "--fd", str(listener.fileno())]
            argv += ["--workers", str(workers)]
            supervisor.add(Part("web", argv, lambda: _answers(url), pass_fds=[listener.fileno()]))
            for number in range(1, persisters + 1):
                argv = [sys.executable, "-m", "persister", "run", "--name", f"persister-{number}"]
                supervisor.add(Part(f"persister-{number}", argv, lambda: True))
            yield (
                supervisor,
                {
                    "ready": True,
                    "url": url,
                    "redis_url": settings.redis_url.get_secret_value(),
                    "database_url": settings.database_url.get_secret_value(),
                    "ops_url": f"http://{settings.ops_listen}",
                    "persister_ops_url": f"http://{os.environ['RELAY_PERSISTER_OPS_LISTEN']}",
                    "pids": supervisor.pids(),
                },
            )
    except (RuntimeError, embedded.NotInstalled, OSError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        supervisor.stop()


def _for_developers() -> dict[str, str]:
    """What is otherwise off, where the environment does not say: the API document, and private listeners."""
    chosen = {
        "RELAY_API_DOCS": "true",
        "RELAY_OPS_LISTEN": f"127.0.0.1:{embedded.free_port()}",
        "RELAY_PERSISTER_OPS_LISTEN": f"127.0.0.1:{embedded.free_port()}",
    }
    return {name: os.environ.get(name, value) for name, value in chosen.items()}


def _secrets(data_dir: Path) -> dict[str, str]:
    """The webhook token and the viewers' secret: the environment's, or this data directory's own."""
    path = data_dir / SECRETS
    if not path.exists():
        path.touch(0o600)
        made = {
            name: secrets.token_urlsafe(32) for name in ("TELEMETRY_WEBHOOK_TOKEN", "RELAY_VIEWER_SECRET")
        }
        path.write_text(json.dumps(made))
    kept: dict[str, str] = json.loads(path.read_text())
    return {name: value for name, value in kept.items() if name not in os.environ}


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
