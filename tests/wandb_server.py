"""A server that speaks as much of W&B's protocol as one run needs: for the tests of the online path."""
from __future__ import annotations

import contextlib
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Keeps what it is sent; `hang` makes it answer nothing more.

    Attributes:
        known: summary of a run that is there already (its history has as many lines as its ``step`` + 1); None for none.
        history: lines of the history, as they came.
        asked: (GraphQL operation, variables).
    """

    def __init__(self, known: dict[str, Any] | None = None) -> None:
        self.known, self.history, self.summary, self.asked = known, [], {}, []
        self._let_go = threading.Event()
        self._let_go.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                server._let_go.wait(60)
                known = self.path == "/graphql" or self.path.endswith("/file_stream")
                answer = json.dumps(server._answer(self.path, json.loads(body)) if known else {}).encode()
                with contextlib.suppress(OSError):  # it has given up waiting
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_PUT = do_POST

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def hang(self) -> None:
        self._let_go.clear()

    def close(self) -> None:
        self._let_go.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path != "/graphql":
            for name, part in body.get("files", {}).items() if isinstance(body, dict) else ():
                lines = [json.loads(line) for line in part["content"]] if name.endswith((".jsonl", "summary.json")) else []
                if name == "wandb-history.jsonl":
                    self.history += lines
                elif name == "wandb-summary.json":
                    self.summary |= lines[-1]
            return {"exitcode": None, "limits": {}}
        name, variables = body.get("operationName"), body.get("variables") or {}
        self.asked.append((name, variables))
        project = {"id": "p", "name": variables.get("project") or "xalign", "entity": {"id": "e", "name": "me"}}
        lines = self.known["step"] + 1 if self.known else 0
        bucket = {"id": "run", "name": variables.get("name"), "displayName": variables.get("displayName"), "sweepName": None,
                  "historyLineCount": lines, "eventsLineCount": 0, "logLineCount": 0, "config": "{}", "tags": [],
                  "summaryMetrics": json.dumps(self.known or {}),
                  "historyTail": json.dumps([json.dumps({"_step": lines - 1, "_runtime": 1})]),
                  "eventsTail": json.dumps([json.dumps({"_runtime": 1})]), "wandbConfig": json.dumps({"t": 1}), "project": project}
        if name == "RunResumeStatus":
            return {"data": {"model": {**project, "bucket": bucket if self.known else None}}}
        if name == "UpsertBucket":
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": not self.known}}}
        if name == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{self.url}/file/{n}"} for n in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}}
        if name == "Viewer":
            return {"data": {"viewer": {"id": "u", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}}
        return {"data": {}}
