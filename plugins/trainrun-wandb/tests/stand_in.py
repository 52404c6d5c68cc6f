"""A stand-in for W&B's server: the few answers that W&B's own client needs to log a run online, and to resume it.

It is not W&B. It keeps the rows of history that it is sent, by the line at which they are to stand.
"""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_EMPTY = {"config": "{}", "summaryMetrics": "{}", "eventsTail": "[]", "logLineCount": 0, "eventsLineCount": 0}


class StandIn:
    """Listens on a port of its own, from `start` to `stop`; `rows` holds what it was sent, by line."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.rows: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.known = False
        self._port = port
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What GraphQL answers, as far as it is needed."""
        match operation:
            case "Viewer":
                return {"viewer": {"id": "u1", "entity": "me", "username": "me", "teams": {"edges": []}, "flags": "{}"}}
            case "RunResumeStatus":
                return {
                    "model": {"id": "p1", "name": "p", "entity": {"id": "e1", "name": "me"}, "bucket": self._bucket()}
                }
            case "UpsertBucket":
                inserted, self.known = not self.known, True
                project = {"id": "p1", "name": "p", "entity": {"id": "e1", "name": "me"}}
                bucket = {"id": "b1", "name": variables.get("name") or "run-1", "displayName": "d", "config": "{}"}
                bucket |= {"historyLineCount": len(self.rows), "project": project}
                return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
            case "CreateRunFiles":
                return {"createRunFiles": {"runID": "b1", "uploadHeaders": [], "files": self._files(variables)}}
        return {}

    def stream(self, body: dict[str, Any]) -> None:
        """Take what W&B's client streams."""
        history = body.get("files", {}).get("wandb-history.jsonl")
        if history is not None:
            for place, line in enumerate(history["content"], history["offset"]):
                self.rows[place] = json.loads(line)
        summary = body.get("files", {}).get("wandb-summary.json")
        if summary is not None:
            self.summary |= json.loads(summary["content"][0])
        if body.get("complete"):
            self.exit_code = body.get("exitcode")

    def _bucket(self) -> dict[str, Any] | None:
        if not self.known:
            return None
        tail = [json.dumps(self.rows[place]) for place in sorted(self.rows)][-1:]
        names = {"id": "b1", "name": "run-1", "displayName": "d", "tags": [], "wandbConfig": '{"t": 1}'}
        return {**_EMPTY, **names, "historyLineCount": len(self.rows), "historyTail": json.dumps(tail)}

    def _files(self, variables: dict[str, Any]) -> list[dict[str, str]]:
        return [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables.get("files", [])]


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self._body() or b"{}")
            if self.path == "/graphql":
                operation, variables = body.get("operationName") or "", body.get("variables") or {}
                self._reply({"data": stand_in.answer(operation, variables)})
            else:
                stand_in.stream(body)
                self._reply({})

        def do_PUT(self) -> None:
            self._body()
            self._reply({})

        def do_GET(self) -> None:
            self._reply({})

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's name
            pass

        def _body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def _reply(self, answer: object) -> None:
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
