"""What can happen to Valkey's file: bytes that were never synced, a full disk, a torn tail, a flipped bit."""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.faults.servers import Valkey
from tests.waiting import until

SHIM = Path(__file__).with_name("power.c")
MULTI = b"*1\r\n$5\r\nMULTI\r\n"


class PowerLoss:
    """Keeps the books about what of Valkey's file is on the disk, and drops the rest."""

    def __init__(self, valkey: Valkey, place: Path) -> None:
        self._valkey = valkey
        self._notes = place / "synced"
        self._notes.mkdir()
        library = place / "power.so"
        argv = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", str(SHIM), "-o", str(library), "-ldl"]
        subprocess.run(argv, check=True)
        valkey.wrap(LD_PRELOAD=str(library), SYNCED_NOTES=str(self._notes))

    async def synced(self) -> None:
        """Waits for the next time that the file is synced."""
        note = self._notes / append_only_files(self._valkey)[-1].name
        before = note.read_text()
        await until(lambda: note.read_text() != before, "the file to be synced")

    async def strike(self, at_stake: int = 0) -> int:
        """The server ends at once, and its file is what a disk has after a power failure; answers how many
        bytes that were written are gone. Waits for a moment when these are at least `at_stake`."""

        def caught() -> bool:
            if self._unsynced() < at_stake:
                return False
            self._valkey.freeze()  # or it might sync in between
            if self._unsynced() >= at_stake:
                return True
            self._valkey.thaw()
            return False

        await until(caught, f"{at_stake} bytes that are not synced", 60)
        await self._valkey.kill()
        lost = self._unsynced()
        for path in append_only_files(self._valkey):
            os.truncate(path, self._kept(path))
        return lost

    def _unsynced(self) -> int:
        return sum(path.stat().st_size - self._kept(path) for path in append_only_files(self._valkey))

    def _kept(self, path: Path) -> int:
        note = self._notes / path.name
        assert note.exists(), f"{path.name} was never synced"
        return int(note.read_text())


def append_only_files(valkey: Valkey) -> list[Path]:
    """The files that commands are appended to; the last one is in use."""
    return sorted((valkey.directory / "appendonlydir").glob("*.incr.aof"))


def may_meet_a_full_disk(valkey: Valkey) -> None:
    """From the next start on, a write beyond a limit fails, as on a full disk, instead of killing."""
    valkey.wrap("/bin/sh", "-c", 'trap "" XFSZ; exec "$0" "$@"')


def fill_disk(valkey: Valkey, room: int) -> None:
    """Leaves that many bytes for its file."""
    size = append_only_files(valkey)[-1].stat().st_size
    resource.prlimit(valkey.pid, resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))


@contextlib.contextmanager
def small(path: Path, like: Path) -> Iterator[Path]:
    """A disk of 16 MB at that path, with the owner of `like`. Only root may have one."""
    path.mkdir()
    owner = like.stat()
    size = f"size=16m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "small", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Writes a file until there is no more room on its disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def tear(valkey: Valkey, part: float) -> None:
    """Leaves the beginning of a write that was under way at the end of its file: so much of the last one."""
    path = append_only_files(valkey)[-1]
    data = path.read_bytes()
    last = data[data.rindex(MULTI) :]
    with path.open("ab") as file:
        file.write(last[: max(len(MULTI) + 1, int(part * len(last)) - 1)])


def flip(valkey: Valkey, content: bytes, place: int) -> None:
    """Changes one bit of the byte at that place within the first occurrence of `content` in its file."""
    path = append_only_files(valkey)[-1]
    data = bytearray(path.read_bytes())
    data[data.index(content) + place] ^= 1
    path.write_bytes(bytes(data))


def lose_everything(valkey: Valkey) -> None:
    """Its directory is empty when it starts again."""
    shutil.rmtree(valkey.directory / "appendonlydir")
