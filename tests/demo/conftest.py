"""A demo served over HTTP on a free port, with a run of noise behind it."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from tests.photos import people
from tests.tryon.runs import tiny_run


class Client:
    """Requests to one port of this machine."""

    def __init__(self, port):
        self.port = port

    def send(self, method, path, content=b"", headers=None):
        """(status, headers, body) of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, content, headers or {})
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def get(self, path):
        status, _, content = self.send("GET", path)
        return status, json.loads(content)

    def post(self, path, asked):
        headers = {"Content-Type": "application/json"}
        status, _, content = self.send("POST", path, json.dumps(asked).encode(), headers)
        return status, json.loads(content)

    def upload(self, kind, content, mime="image/png", **headers):
        status, _, answer = self.send(
            "POST", f"/pictures/{kind}", content, {"Content-Type": mime, **headers}
        )
        return status, json.loads(answer)

    def finished(self, job):
        """The last look at a job."""
        while True:
            _, seen = self.get(f"/jobs/{job}")
            if seen["state"] not in ("queued", "running"):
                return seen
            time.sleep(0.02)


@contextmanager
def serving(demo):
    """The port that a demo answers at."""
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(demo.app, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        demo.worker.stop()


@pytest.fixture(scope="session")
def try_on(tmp_path_factory, rendered):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from vton.tryon import TryOn

    return TryOn(tiny_run(tmp_path_factory.mktemp("demo"), rendered).path)


@pytest.fixture(scope="session")
def demo(try_on):
    from vton.demo.server import Demo

    return Demo(lambda: try_on)


@pytest.fixture(scope="session")
def client(demo):
    with serving(demo) as port:
        client = Client(port)
        while client.get("/about")[1]["state"] == "loading":
            time.sleep(0.02)
        yield client


def png(image):
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def person_png():
    return png(people.photo(1))


@pytest.fixture(scope="session")
def garment_png():
    return png(people.garment(2)[0])
