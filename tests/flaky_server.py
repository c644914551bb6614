"""A local HTTP server that behaves like a model hub, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class FlakyServer:
    """What is served, how, and what was asked for. Trouble is used up: one entry per request, then all goes well."""

    body: bytes
    address: str = ""
    announced: str = ""
    """SHA-256 in the redirect of /linked, as the hub sends it for large files"""
    trouble: list[tuple[str, int]] = field(default_factory=list)
    """("stall" | "cut", bytes sent before it) or ("status", HTTP status)"""
    ranges: bool = True
    """whether the server continues where it is asked to"""
    requests: list[str | None] = field(default_factory=list)
    """the Range of every request for the file"""
    done: threading.Event = field(default_factory=threading.Event)


@contextmanager
def flaky_server(body: bytes) -> Iterator[FlakyServer]:
    """Serve `body` at /file, and at /linked through a redirect that announces size and digest."""
    server = FlakyServer(body, announced=hashlib.sha256(body).hexdigest())
    handler = type("Handler", (_Handler,), {"settings": server})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.daemon_threads = True
    server.address = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.done.set()
        running.shutdown()
        running.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    settings: FlakyServer

    def do_GET(self) -> None:
        if self.path.startswith("/linked"):
            self._redirect()
        else:
            self._file(self.settings.trouble.pop(0) if self.settings.trouble else ("none", len(self.settings.body)))

    def _redirect(self) -> None:
        self.send_response(302)
        self.send_header("X-Linked-Etag", f'"{self.settings.announced}"')
        self.send_header("X-Linked-Size", str(len(self.settings.body)))
        self.send_header("Location", "/file")
        self.end_headers()

    def _file(self, trouble: tuple[str, int]) -> None:
        settings, asked = self.settings, self.headers.get("Range")
        settings.requests.append(asked)
        if trouble[0] == "status":
            self.send_error(trouble[1])
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and settings.ranges else 0
        if asked and settings.ranges and start >= len(settings.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(settings.body)}")
            self.end_headers()
            return
        self.send_response(206 if asked and settings.ranges else 200)
        self.send_header("Content-Length", str(len(settings.body) - start))
        self.end_headers()
        self.wfile.write(settings.body[start : start + trouble[1]])
        if trouble[0] == "stall":
            settings.done.wait(30)

    def log_message(self, *_: object) -> None:
        """Quiet."""
