"""The web service as processes: uvicorn, with our protocol class."""

import logging
import math
import socket
from time import monotonic
from typing import NoReturn

import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from relay import logs
from relay.errors import RelayError
from relay.memory import keep_freed, look_rarely
from relay.processes import die_with_parent
from relay.settings import Settings, explain

log = logging.getLogger(__name__)

GRACE_S = 10
"""The backstop of a shutdown: viewers leave at once, and requests have an answer within 3 s."""

KEEP_ALIVE_S = 75
"""Longer than the idle time-out of common proxies, so that they never write into a closing connection."""

PAUSE_S = (1.0, 16.0)
"""After a worker was replaced, before the next one is: at first, and at most. It doubles, until no worker had
to be replaced for `STEADY_S`."""

STEADY_S = 60.0


def listen(host: str, port: int) -> socket.socket:
    """The listening socket, so that it can be had before there is a server. Raises OSError."""
    return socket.create_server((host, port), backlog=2048, reuse_port=False)


def serve(listener: socket.socket, workers: int) -> None:
    """Serves until SIGINT or SIGTERM: viewers are told to come back, requests under way are answered.

    Raises SystemExit where a worker can not start, since another one could not either.
    """
    from relay.http.protocol import StreamingProtocol  # noqa: PLC0415 - not for who only listens

    config = uvicorn.Config(
        "relay.server:worker" if workers > 1 else application,
        factory=True,
        http=StreamingProtocol,
        loop="uvloop",
        workers=workers,
        access_log=False,
        proxy_headers=False,  # nobody asks who the client is
        server_header=False,
        date_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        log_config=None,
    )
    if workers > 1:
        supervisor = Workers(config, sockets=[listener])
        supervisor.run()
        if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
            raise SystemExit(STARTUP_FAILURE)
    else:
        uvicorn.Server(config).run(sockets=[listener])


class Workers(Multiprocess):
    """Replaces workers that end, the first at once. Where they end again and again, it leaves the processor
    to those that are well in between."""

    _replaced = -math.inf
    _pause_s = 0.0

    def keep_subprocess_alive(self) -> None:
        """What uvicorn calls twice a second."""
        if monotonic() < self._replaced + self._pause_s:
            return
        before = list(self.processes)
        super().keep_subprocess_alive()
        ended = [old for old, new in zip(before, self.processes, strict=True) if old is not new]
        if ended:
            before_that, self._replaced = self._replaced, monotonic()
            steady = self._replaced - before_that > STEADY_S
            self._pause_s = PAUSE_S[0] if steady else min(2 * self._pause_s, PAUSE_S[1])
        for worker in ended:
            log.error("worker %s ended with exit code %s, and was replaced", worker.pid, worker.exitcode)


def application() -> ASGIApp:
    """The application, in a process that has nothing else to do."""
    from relay.app import create_app  # noqa: PLC0415 - as above: most of what there is to load

    app = create_app()
    look_rarely()
    keep_freed()
    return app


def worker() -> ASGIApp:
    """The application in one of several workers, which would outlive a killed parent otherwise.

    Raises SystemExit where it can not be made, with the code by which the parent knows that another worker
    could not make it either: any other one it would replace for ever.
    """
    die_with_parent()
    try:
        settings = Settings()
        logs.configure(settings.log_format, settings.log_level)
        return application()
    except ValidationError as error:
        _give_up(explain(error))
    except RelayError as error:
        _give_up(str(error))
    except Exception as error:
        log.exception("unexpected")
        _give_up(type(error).__name__)


def _give_up(why: str) -> NoReturn:
    log.critical("A worker can not start, so the service ends: %s", why)
    raise SystemExit(STARTUP_FAILURE)
