"""A Valkey for tests that kill it."""

from relay.processes import Part, start, stop, wait_ready


class Valkey:
    """A server that can be killed, and comes back with what its file holds."""

    def __init__(self, part: Part, url: str) -> None:
        self.url = url
        self._part = part
        self._process = start(part)
        wait_ready(part, self._process)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        self._process = start(self._part)
        wait_ready(self._part, self._process)

    def stop(self) -> None:
        stop(self._part, self._process)
