"""Authorities and certificates made for a test, and a PostgreSQL that speaks TLS."""

import asyncio
import contextlib
import queue
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

SSL_REQUEST_BYTES = 8


class Authority:
    """An authority and a certificate that it gave to `localhost`, as files in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.ca, self.certificate, self.key = (directory / name for name in ("ca.pem", "cert.pem", "key.pem"))
        ca_key, request, names = (directory / name for name in ("ca.key", "request.pem", "names"))
        # Python 3.13 is strict about what a certificate has to say.
        names.write_text(
            "subjectAltName=DNS:localhost\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        new_key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        usage = ["-addext", "keyUsage=critical,keyCertSign"]
        openssl(*new_key, "-x509", "-subj", "/CN=tests", *usage, "-keyout", ca_key, "-out", self.ca)
        openssl(*new_key, "-subj", "/CN=localhost", "-keyout", self.key, "-out", request)
        signed: list[str | Path] = ["-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", names]
        openssl("x509", "-req", "-in", request, *signed, "-out", self.certificate)


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@contextlib.contextmanager
def tls_postgres(port: int, authority: Authority) -> Iterator[int]:
    """A port at which the PostgreSQL at `port`, whose wheel was built without TLS, speaks it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.certificate, authority.key)
    stopping = asyncio.Event()
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, int]] = queue.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            await reader.readexactly(SSL_REQUEST_BYTES)
            writer.write(b"S")
            await writer.start_tls(context)
            behind_reader, behind = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(behind):
                await asyncio.gather(pump(reader, behind), pump(behind_reader, writer))

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            started.put((asyncio.get_running_loop(), server.sockets[0].getsockname()[1]))
            await stopping.wait()

    thread = threading.Thread(target=asyncio.run, args=[run()])
    thread.start()
    loop, own_port = started.get()
    try:
        yield own_port
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
