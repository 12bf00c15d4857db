"""Whose events are whose: each process has a directory of its own in the spool, and locks it while it lives.

    <spool_dir>/<relay>/<started>-<pid>-<random>/lock
                                                 000001.ndjson
                                                 000002.ndjson

The kernel gives up the lock when its process dies, however it dies. Then another process may lock the
directory, and send what is in it: one process at a time, so the order is kept and nothing is sent twice.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from rp_relay_client.segment import Segment

_LOCK = "lock"
_SEGMENTS = "*.ndjson"


class Claim:
    """The right to one directory, until it is given up."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._made = 0

    @classmethod
    def new(cls, root: Path) -> "Claim":
        """A directory for this process. Raises OSError."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(8)}"
        # Locked before it has its name, so nobody takes it for one that was left behind.
        hidden = root / f".{name}"
        hidden.mkdir(mode=0o700)
        fd = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(root / name)
        except OSError:
            os.close(fd)
            raise
        return cls(root / name, fd)

    @classmethod
    def take_over(cls, path: Path) -> "Claim | None":
        """The directory of a process that died; None while it lives, or where another one was faster."""
        try:
            fd = os.open(path / _LOCK, os.O_RDWR)
        except OSError:
            return None  # just removed, or nothing of ours
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return cls(path, fd)
        except OSError:
            pass  # locked: its process lives
        os.close(fd)
        return None

    def create(self) -> Segment:
        """The next file. Raises OSError."""
        self._made += 1
        path = self.path / f"{self._made:06d}.ndjson"
        return Segment.create(self._name(path), path)

    def load(self) -> list[Segment]:
        """The files that are there, oldest first. Raises OSError."""
        return [Segment.load(self._name(path), path) for path in sorted(self.path.glob(_SEGMENTS))]

    def _name(self, path: Path) -> str:
        return f"{self.path.name}.{path.stem}"

    def give_up(self) -> None:
        """Lets go of the directory, and removes it if nothing is left in it."""
        with contextlib.suppress(OSError):
            if not any(self.path.glob(_SEGMENTS)):
                (self.path / _LOCK).unlink()
                self.path.rmdir()
        self.close()

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def left_behind(root: Path) -> Iterator[Claim]:
    """Takes over the directories of dead processes, oldest first."""
    for path in sorted(root.glob("[!.]*")):
        if claim := Claim.take_over(path):
            yield claim
