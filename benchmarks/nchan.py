"""The peer: nginx with the nchan module, publishing and serving viewers in C."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Service
from benchmarks.ours import EVENT, request

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

MESSAGE = (
    b'{"type":"paper_generation_progress","data":{"id":1234567890123456,"run_id":"%b",%b,'
    b'"created_at":"2026-01-01T00:00:00.000+00:00"}}'
)
"""What our viewers get of an event, so that both carry the same bytes."""


class PeerMissing(Exception):
    """There is nothing to compare with."""


@dataclass(frozen=True)
class Nchan(Service):
    """nginx with nchan."""

    def post(self, run: str, events: int) -> bytes:
        if events != 1:
            raise ValueError("nchan takes one message at a time")
        return request(f"/publish?id={run}", MESSAGE % (run.encode(), EVENT[1:-1]))

    def view(self, run: str) -> bytes:
        return f"GET /view?id={run} HTTP/1.1\r\nHost: nchan\r\nAccept: text/event-stream\r\n".encode()


def installed() -> str:
    """The program. Raises PeerMissing, with what to do."""
    program = shutil.which("nginx")
    if program is None or not MODULE.exists():
        raise PeerMissing("nginx with nchan is missing: apt-get install nginx libnginx-mod-nchan")
    return program


def configuration(place: Path, port: int, redis_url: str | None) -> str:
    """One worker, which keeps messages in memory or through Redis; nothing is logged, checked or limited."""
    upstream = f"upstream store {{ nchan_redis_server {redis_url}; }}" if redis_url else ""
    storage = "nchan_redis_pass store;" if redis_url else ""
    text = f"""
        daemon off;
        worker_processes 1;
        worker_rlimit_nofile 65536;
        user root;
        pid {place}/pid;
        error_log {place}/error.log error;
        load_module {MODULE};
        events {{ worker_connections 20000; }}
        http {{
            access_log off;
            client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;
            fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
            keepalive_requests 1000000000;
            client_body_buffer_size 64k;
            nchan_shared_memory_size 1024m;
            nchan_message_buffer_length 10000;
            nchan_message_timeout 1h;
            {upstream}
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location = /publish {{ nchan_publisher; nchan_channel_id $arg_id; {storage} }}
                location = /view {{
                    nchan_subscriber eventsource; nchan_channel_id $arg_id;
                    nchan_subscriber_first_message newest; {storage}
                }}
                location / {{ return 204; }}
            }}
        }}
    """
    return re.sub(r"\n\s+", "\n", text)
