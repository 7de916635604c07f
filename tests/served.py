"""A web server on this machine that may misbehave: what fetches files must notice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple


class Answer(NamedTuple):
    body: bytes = b""
    headers: Mapping[str, object] = MappingProxyType({})
    status: int = 200


@contextmanager
def serving(answer: Callable[[str], Answer]) -> Iterator[str]:
    """The address of a server that answers requests for a path with `answer(path)` and then hangs
    up.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body, headers, status = answer(self.path.lstrip("/"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
