"""One wrong input and what the command line must say about it; the inputs stand in the ``inputs_*.py`` beside this file."""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Content = bytes | str | Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A command line, the files it meets, and the words of its answer.

    In `argv`, `env` and `words`, ``{dir}`` stands for the case's own folder (the working directory), ``{parallel}`` for conftest's
    aligned sentences, ``{cache}`` for the session's cache (where artifacts go unless ``cache=`` is given), ``{url}`` for `server`.

    Args:
        words: what the one line must hold: the place (key, file:line) and a word of the remedy; of an accepted input, what is printed.
        files: written into the folder first; a callable gets the path and writes it itself.
        heavy: False: the answer must come without torch.
        server: answers every request of a real local HTTP server.
        long: not run by default (``-m long``).
    """

    name: str
    argv: list[str]
    words: tuple[str, ...]
    files: dict[str, Content] = field(default_factory=dict)
    heavy: bool = False
    env: dict[str, str] = field(default_factory=dict)
    server: Callable[[BaseHTTPRequestHandler], None] | None = None
    long: bool = False

    def write(self, folder: Path) -> None:
        """Write `files` into `folder`."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)

    @contextmanager
    def served(self) -> Iterator[str]:
        """The address of `server` while it runs; empty without one."""
        if not self.server:
            yield ""
            return
        answer = self.server
        handler = type("Handler", (BaseHTTPRequestHandler,), {"do_GET": answer, "do_POST": answer, "log_message": lambda *_: None})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()
