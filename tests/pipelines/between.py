"""A real HTTP server between the client and the emulator, which refuses, stays silent or lets jobs run like Google."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW = "-- slow"
"""In a statement: its job is RUNNING until somebody cancels it."""


class Between(ThreadingHTTPServer):
    """`refusals` holds what the next jobs are answered with: a status, or None to cut the connection."""

    daemon_threads = True

    def __init__(self, emulator_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.emulator = urlsplit(emulator_url)
        self.refusals: list[int | None] = []
        self.jobs_asked = 0
        self.running: dict[str, dict] = {}
        self.cancelled: list[str] = []
        self.started = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def between(emulator_url: str) -> Iterator[Between]:
    with Between(emulator_url) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Between

    def log_message(self, *_: object) -> None:
        """Tests read no access log."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path).path.rstrip("/").split("/")
        if self.command == "POST" and parts[-1] == "jobs" and "upload" not in parts:
            self.server.jobs_asked += 1
            if self.server.refusals:
                self._refuse(self.server.refusals.pop(0))
                return
            if SLOW.encode() in body:
                self._start(json.loads(body))
                return
        if parts[-1] == "cancel" and parts[-2] in self.server.running:
            self.server.cancelled.append(parts[-2])
            job = self.server.running[parts[-2]]
            job["status"] = {"state": "DONE", "errorResult": {"reason": "stopped", "message": "cancelled"}}
            self._answer(200, json.dumps({"job": job}).encode())
        elif self.command == "GET" and parts[-2] == "jobs" and parts[-1] in self.server.running:
            self._answer(200, json.dumps(self.server.running[parts[-1]]).encode())
        else:
            self._pass_on(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815

    def _refuse(self, status: int | None) -> None:
        if status is None:
            self.close_connection = True
            return
        reason = {503: "backendError", 403: "accessDenied", 429: "rateLimitExceeded"}.get(status, "invalidQuery")
        error = {
            "code": status,
            "message": "CANARY in the message",
            "errors": [{"reason": reason, "message": "CANARY"}],
        }
        self._answer(status, json.dumps({"error": error}).encode())

    def _start(self, job: dict) -> None:
        reference = {"location": "US", **job["jobReference"]}
        self.server.running[reference["jobId"]] = {
            **job,
            "id": reference["jobId"],
            "jobReference": reference,
            "status": {"state": "RUNNING"},
            "statistics": {},
        }
        self.server.started.set()
        self._answer(200, json.dumps(self.server.running[reference["jobId"]]).encode())

    def _pass_on(self, body: bytes) -> None:
        upstream = HTTPConnection(self.server.emulator.hostname, self.server.emulator.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding", "connection")}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        own = self.server.emulator.netloc
        more = {
            k: v.replace(own, urlsplit(self.server.url).netloc)
            for k, v in answer.getheaders()
            if k.lower() in ("location", "range", "x-goog-upload-status")
        }
        self._answer(answer.status, content, answer.getheader("Content-Type") or "application/json", more)

    def _answer(self, status: int, body: bytes, kind: str = "application/json", more: dict | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
