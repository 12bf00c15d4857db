"""The command `relay`. Signals and exit codes live here."""

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType

import click
from pydantic import SecretStr, ValidationError

from relay import embedded, erase, logs, migrate, server, tracing
from relay.auth import mint_run_token, mint_viewer_token
from relay.auth.viewers import Viewers
from relay.auth.writers import Tokens
from relay.connect import database, persister_clients
from relay.errors import RelayError
from relay.processes import Part, Supervisor
from relay.program import Program
from relay.settings import Settings, explain, variable
from relay.startup import EVERY_CHECK, guard, refuse_weak, stores_by_hand
from relay.stream.keys import RUN_ID

DATA_DIR = Path(".relay-data")
SECRETS = "secrets.json"
"""In the data directory: what of `MADE` the environment does not have."""

MADE = ("TELEMETRY_WEBHOOK_TOKEN", "RELAY_VIEWER_SECRET", "RELAY_RUN_TOKEN_SECRET")


@click.group(cls=Program)
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
    settings = _settings()
    logs.configure(settings.log_format, settings.log_level)
    _check_files(settings)
    with guard(settings):
        tracing.check(settings)  # said here, and not by every worker in its own way
        server.serve(_listener(host, port, fd), workers)


def _listener(host: str, port: int, fd: int | None) -> socket.socket:
    try:
        return server.listen(host, port) if fd is None else socket.socket(fileno=fd)
    except OSError as error:
        raise click.ClickException(f"Can not listen on {host}:{port}: {error.strerror}") from error


@main.command("migrate")
def migrate_() -> None:
    """Bring the database's schema up to date, and the functions in Redis where REDIS_URL is set.

    Workers load the functions by themselves where their users may.
    """
    settings = _settings()
    logs.configure(settings.log_format, settings.log_level)
    migrate.upgrade(settings.database_url.get_secret_value())
    if "redis_url" in settings.model_fields_set:
        try:
            with stores_by_hand():
                migrate.load_functions(settings.redis_url.get_secret_value())
        except RelayError as error:
            raise click.ClickException(
                "The schema is up to date, but the functions could not be loaded into Redis. The user in "
                f"REDIS_URL has to be allowed to. {error}"
            ) from error


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
    _log_for_people()
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
    from relay import demo as demonstration  # noqa: PLC0415 - no worker should have to load it

    _log_for_people("warning")
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
@click.option("--user", type=click.IntRange(min=0), help="A viewer's token, for the user with this id.")
@click.option("--run", help="A pipeline's token, for this run alone; it does not expire.")
@click.option("--ttl", default=3600, show_default=True, help="Seconds until a viewer's token expires.")
@click.option("--data-dir", default=DATA_DIR, show_default=True, type=click.Path(path_type=Path))
def token(user: int | None, run: str | None, ttl: int, data_dir: Path) -> None:
    """Print a viewer's token, or that of a run.

    It is made with RELAY_VIEWER_SECRET or RELAY_RUN_TOKEN_SECRET, or else with the secrets of `relay up`. A
    viewer's has what RELAY_VIEWER_AUDIENCE and RELAY_VIEWER_ISSUER ask for.
    """
    if (data_dir / SECRETS).exists():
        os.environ.update(_secrets(data_dir))
    settings = _settings()
    if run is not None and user is None:
        if not re.fullmatch(RUN_ID, run):
            raise click.BadParameter("A run is called 1 to 128 of A-Z a-z 0-9 . _ : -", param_hint="--run")
        click.echo(mint_run_token(_secret(settings, "run_token_secret"), run))
    elif user is not None and run is None:
        audience, issuer = settings.viewer_audience, settings.viewer_issuer
        secret = _secret(settings, "viewer_secret")
        click.echo(mint_viewer_token(secret, user, ttl, audience=audience, issuer=issuer))
    else:
        raise click.UsageError("Say whose token: either --user or --run.")


def _secret(settings: Settings, name: str) -> str:
    """The secret in that setting. Refuses one that the service does not start with."""
    secret: SecretStr | None = getattr(settings, name)
    if secret is None:
        raise click.ClickException(f"Set {variable(name)} to the secret that the service uses.")
    refuse_weak(settings, name)
    return secret.get_secret_value()


def _log_for_people(level: logs.Level = "info") -> None:
    """Unless the environment says otherwise; for all processes that are started from here, too."""
    os.environ.setdefault("RELAY_LOG_FORMAT", "text")
    os.environ.setdefault("RELAY_LOG_LEVEL", level)
    settings = _settings()
    logs.configure(settings.log_format, settings.log_level)


@main.command()
@click.argument("conversation", type=int)
@click.argument("run_id", metavar="RUN")
@click.option("--url", envvar="RELAY_URL", default="http://127.0.0.1:8000", show_default=True)
@click.option("--token", envvar="RELAY_TOKEN", required=True, help="A viewer's token, or set RELAY_TOKEN.")
def tail(conversation: int, run_id: str, url: str, token: str) -> None:
    """Show a run in the terminal until it is over."""
    from relay.watch import watch  # noqa: PLC0415 - no worker should have to load it

    def away(trouble: str) -> None:
        click.echo(f"{trouble}; trying again ...", err=True)

    for _, message in watch(url, conversation, run_id, token, away):
        click.echo(json.dumps(message, ensure_ascii=False))


@main.command("erase")
@click.argument("run_id", metavar="RUN")
@click.option(
    "--held",
    default=erase.HELD_S,
    show_default=True,
    help="Seconds that a persister may hold what it was given: above three times RELAY_PERSISTER_STUCK_S.",
)
def erase_(run_id: str, held: float) -> None:
    """Remove a run from the logs, the archive and the dead letters. Its pipeline must have stopped."""
    if not re.fullmatch(RUN_ID, run_id):
        raise click.ClickException("No run can be called that.")
    settings = _settings()
    url = settings.database_url.get_secret_value()

    def waiting() -> None:
        click.echo("Persisters finish what they were given ...", err=True)

    with ExitStack() as stack:
        clients = persister_clients(settings.redis_url.get_secret_value())
        for client in clients:
            stack.callback(client.close)
        erased = erase.erase(clients, lambda: database(url), run_id, waiting, held)
    click.echo(f"Erased: {erased.entries} entries, {erased.rows} rows, {erased.dead_letters} dead letters.")


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        raise click.ClickException(explain(error)) from error


def _check_files(settings: Settings) -> None:
    """The files that settings name are as they should be; said here, not by every worker in its own way."""
    for source in (Tokens(settings).source, Viewers(settings).source):
        if source and not source.remote:
            asyncio.run(source.read())


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
    try:
        with embedded.alone_in(data_dir), _started(host, port, data_dir, workers, persisters) as started:
            yield started
    except (RuntimeError, embedded.NotInstalled, embedded.InUse, OSError) as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _started(
    host: str, port: int, data_dir: Path, workers: int, persisters: int
) -> Iterator[tuple[Supervisor, dict[str, object]]]:
    supervisor = Supervisor()
    try:
        env = _for_developers() | _secrets(data_dir)
        env["RELAY_ALLOW_INSECURE"] = ",".join(EVERY_CHECK)
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
            chosen = listener.getsockname()[1]
            argv = [sys.executable, "-m", "relay", "serve", "--fd", str(listener.fileno())]
            argv += ["--workers", str(workers)]
            supervisor.add(Part("web", argv, lambda: _answers(host, chosen), pass_fds=[listener.fileno()]))
            for number in range(1, persisters + 1):
                argv = [sys.executable, "-m", "persister", "run", "--name", f"persister-{number}"]
                supervisor.add(Part(f"persister-{number}", argv, lambda: True))
            yield (
                supervisor,
                {
                    "ready": True,
                    "url": f"http://{host}:{chosen}",
                    "redis_url": settings.redis_url.get_secret_value(),
                    "database_url": settings.database_url.get_secret_value(),
                    "ops_url": f"http://{settings.ops_listen}",
                    "persister_ops_url": f"http://{os.environ['RELAY_PERSISTER_OPS_LISTEN']}",
                    "pids": supervisor.pids(),
                },
            )
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
    """The webhook token and the secrets that the environment does not have: this data directory's own."""
    path = data_dir / SECRETS
    path.touch(0o600)
    kept: dict[str, str] = json.loads(path.read_text() or "{}")
    missing = [name for name in MADE if name not in kept]
    if missing:
        kept |= {name: secrets.token_urlsafe(32) for name in missing}
        path.write_text(json.dumps(kept))
    return {name: value for name, value in kept.items() if name not in os.environ}


def _answers(host: str, port: int) -> bool:
    """Whether the web service is ready. It is asked often while it starts, so by the cheapest client."""
    with closing(HTTPConnection(host, port, timeout=2)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
