"""A fake of the model hub, as there is none to install: `fake_hub.py FOLDER PORT`.

It takes what the hub's own client sends for repositories of models: who asks, the making of a repository, large files
by Git LFS, and commits. FOLDER/REPO has the files of the last commit; FOLDER/commits.jsonl a line for each. The one
valid token is "secret". A file FOLDER/broken makes the next commit fail with an error of the server.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER, PORT = Path(sys.argv[1]), int(sys.argv[2])
LARGE = (".safetensors",)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._may():
            return
        if self.path == "/api/whoami-v2":
            self._answer(200, {"name": "someone", "type": "user", "auth": {"type": "access_token"}})
        elif (found := re.fullmatch(r"/api/models/(.+?)(/revision/main)?", self.path)) and (FOLDER / found[1]).is_dir():
            self._answer(200, {"id": found[1], "sha": "0" * 40})
        else:
            self._answer(404, {"error": "Repository not found"})

    def do_HEAD(self) -> None:
        repo, name = re.fullmatch(r"/(.+)/resolve/main/(.+)", self.path).groups()  # type: ignore[union-attr]
        there = (FOLDER / repo / name).is_file()
        headers = {"X-Repo-Commit": "0" * 40, "ETag": '"0"'} if there else {"X-Error-Code": "EntryNotFound"}
        self._answer(200 if there else 404, None, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._may():
            return
        if self.path == "/api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            self._answer(200, {"files": [self._mode(found[1], one) for one in json.loads(body)["files"]]})
        elif re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            self._answer(
                200, {"transfer": "basic", "objects": [self._place(one) for one in json.loads(body)["objects"]]}
            )
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": f"the fake does not know POST {self.path}"})

    def do_PUT(self) -> None:
        self._blob(self.path.rpartition("/")[2]).write_bytes(self._body())
        self._answer(200, {})

    def _body(self) -> bytes:
        """The client sends files in chunks."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization'] or 'someone'}/{wanted['name']}"
        answer = {"url": f"http://127.0.0.1:{PORT}/{repo}", "name": repo}
        if (FOLDER / repo).is_dir():
            self._answer(409, {**answer, "error": "You already created this model repo"})
            return
        (FOLDER / repo).mkdir(parents=True)
        self._note({"created": repo, "visibility": wanted.get("visibility")})
        self._answer(200, answer)

    def _mode(self, repo: str, file: dict[str, Any]) -> dict[str, Any]:
        there = FOLDER / repo / file["path"]
        large = there.name.endswith(LARGE)
        known = there.read_bytes() if there.is_file() else None
        git = hashlib.sha1(b"blob %d\0" % len(known) + known).hexdigest() if known is not None else None
        oid = hashlib.sha256(known).hexdigest() if large and known is not None else git
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"http://127.0.0.1:{PORT}/lfs/{wanted['oid']}"}}
        return {**wanted, **({} if self._blob(wanted["oid"]).exists() else {"actions": upload})}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        broken = FOLDER / "broken"
        if broken.exists():
            broken.unlink()
            self._answer(500, {"error": "Internal Error"})
            return
        for line in lines[1:]:
            value, target = line["value"], FOLDER / repo / line["value"]["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            large = line["key"] == "lfsFile"
            target.write_bytes(self._blob(value["oid"]).read_bytes() if large else base64.b64decode(value["content"]))
        paths = sorted(line["value"]["path"] for line in lines[1:])
        self._note({"repo": repo, "files": paths, **lines[0]["value"]})
        self._answer(200, {"commitUrl": f"http://127.0.0.1:{PORT}/{repo}/commit/0", "commitOid": "0" * 40})

    def _blob(self, oid: str) -> Path:
        return FOLDER / f"{oid}.blob"

    def _note(self, record: dict[str, Any]) -> None:
        with (FOLDER / "commits.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _may(self) -> bool:
        if allowed := self.headers.get("Authorization") == "Bearer secret":
            return allowed
        self._answer(401, {"error": "Invalid username or password."})
        return False

    def _answer(self, code: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
