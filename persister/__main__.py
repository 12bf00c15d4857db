"""The command `persister`. Signals and exit codes live here."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

import click
import redis
from pydantic import ValidationError

from persister import health
from persister.dead_letters import DeadLetters
from persister.loop import Loop
from persister.prune import BATCH, oldest_to_keep, parse_age, prune_dead_letters, prune_rows
from persister.settings import Settings
from persister.store import Store
from relay import logs, tracing
from relay.connect import database, persister_clients, persister_redis
from relay.listener import listening
from relay.memory import look_rarely
from relay.program import Program
from relay.settings import explain
from relay.startup import guard

if TYPE_CHECKING:
    from relay.spans import Spans

log = logging.getLogger("persister")

WATCH_S = 1.0
"""How often the main thread looks after the others."""

SWITCH_S = 0.0005
"""How long a thread that computes may keep the others waiting. Those make round trips to Redis and
PostgreSQL, and need a moment of Python in between; by default each would wait ten times as long for it."""


@click.group(cls=Program)
@click.version_option(package_name="rp-relay")
def main() -> None:
    """Drains the event log into PostgreSQL."""


@main.command()
@click.option("--name", help="Name in the consumer group; another one for each process. Default: the host's.")
def run(name: str | None) -> None:
    """Drain until SIGINT or SIGTERM; the batch at hand is finished first."""
    settings = _settings(name)
    logs.configure(settings.log_format, settings.log_level)
    with guard(settings), _exporting(settings) as spans:
        _drain(settings, spans)


def _drain(settings: Settings, spans: "Spans | None") -> None:
    """Until a signal, or a failure: that ends the program with SystemExit."""
    url = settings.redis_url.get_secret_value()
    shards = range(settings.shards)
    loops = [Loop(persister_redis(url, shard), _store(settings), shard, settings, spans) for shard in shards]
    failed = threading.Event()

    def stop(signum: int = 0, frame: FrameType | None = None) -> None:
        for loop in loops:
            loop.stop()

    def drain(loop: Loop) -> None:
        try:
            loop.run()
        except Exception:
            log.exception("a shard is not drained any more; the process ends, to be started again")
            failed.set()
            stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    look_rarely()
    sys.setswitchinterval(SWITCH_S)
    threads = [threading.Thread(target=drain, args=[loop]) for loop in loops]
    with listening(settings.persister_ops_listen, health.pages(loops, settings.persister_stuck_s)):
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(WATCH_S)
                _end_if_stuck(loops, settings.persister_stuck_s)
    if failed.is_set():
        raise SystemExit(1)


def _end_if_stuck(loops: Sequence[Loop], limit_s: float) -> None:
    """Ends the process where a server took a batch and does not answer: nothing else gets a thread out of a
    call into a driver. What it had at hand is not settled, so nothing is lost."""
    if any(loop.busy_s > limit_s for loop in loops):
        log.critical(
            "a batch has been stuck for more than %g s; the process ends, to be started again", limit_s
        )
        logging.shutdown()
        os._exit(1)


@main.group("dead-letters")
def dead_letters() -> None:
    """What could not be archived."""


@dead_letters.command("list")
def list_() -> None:
    """One line each: key, run, kind, reason."""
    for letter in DeadLetters(_clients(_settings())):
        run_id, kind = (letter.entry.run_id, letter.entry.kind) if letter.entry else ("?", "?")
        click.echo(f"{letter.key}\t{run_id}\t{kind}\t{letter.reason}")


@dead_letters.command()
@click.argument("key")
def show(key: str) -> None:
    """One dead letter, whole, as JSON."""
    letter = DeadLetters(_clients(_settings())).get(key)
    if letter is None:
        raise click.ClickException(
            "There is no dead letter with that key; `persister dead-letters list` shows all."
        )
    document = {"key": letter.key, "id": letter.stream_id.decode(), "reason": letter.reason} | letter.shown()
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


@dead_letters.command()
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def requeue(keys: tuple[str, ...], everything: bool) -> None:
    """Archive dead letters, under their own ids, now that the cause is gone."""
    if not keys and not everything:
        raise click.UsageError("Name dead letters, or say --all.")
    settings = _settings()
    letters = DeadLetters(_clients(settings))
    store = _store(settings)
    failed, missing = False, dict.fromkeys(keys)
    with _exporting(settings) as spans:
        for letter in letters:
            if everything or letter.key in keys:
                reason = letters.requeue(letter, store, spans)
                failed = failed or reason is not None
                missing.pop(letter.key, None)
                click.echo(f"{letter.key}\t{'stored' if reason is None else reason}")
    for key in missing:
        click.echo(f"{key}\tthere is no such dead letter; where it was stored before, there is nothing to do")
    if failed or missing:
        raise SystemExit(1)


@main.command()
@click.option("--older-than", "age", required=True, help="An age in days or hours: 90d, 36h.")
@click.option("--batch", default=BATCH, show_default=True, type=click.IntRange(min=1))
def prune(age: str, batch: int) -> None:
    """Delete rows and dead letters that are older, a batch at a time. Younger ones stay."""
    try:
        oldest = parse_age(age)
    except ValueError as error:
        raise click.UsageError(f"--older-than: {error}") from error
    settings = _settings()
    url = settings.database_url.get_secret_value()
    for table, rows in prune_rows(lambda: database(url), oldest_to_keep(oldest), batch):
        click.echo(f"{table}\t{rows}")
    letters = prune_dead_letters(_clients(settings), oldest)
    click.echo(f"dead letters\t{letters}")


@contextmanager
def _exporting(settings: Settings) -> Iterator["Spans | None"]:
    """What makes the spans of a command, and sends them. Raises Misconfigured."""
    spans = tracing.spans(settings, "persister")
    with spans.exporting() if spans else nullcontext():
        yield spans


def _settings(name: str | None = None) -> Settings:
    try:
        return Settings(persister_name=name) if name else Settings()
    except ValidationError as error:
        raise click.ClickException(explain(error)) from error


def _clients(settings: Settings) -> Sequence[redis.Redis]:
    return persister_clients(settings.redis_url.get_secret_value())


def _store(settings: Settings) -> Store:
    return Store(lambda: database(settings.database_url.get_secret_value()))


if __name__ == "__main__":
    main()
