import base64
import gc
import io
import json
import socket
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image

from tests.demo.conftest import Client, png, serving
from tests.photos import people
from tests.photos.test_reading import SMALL, archive, huge_png

pytest.importorskip("starlette")

from vton.demo import jobs
from vton.demo import server as served
from vton.demo.jobs import KEPT, WAITING, Worker
from vton.demo.pictures import Pictures
from vton.demo.server import Demo


@pytest.fixture
def ids(client, person_png, garment_png):
    _, person = client.upload("person", person_png)
    _, garment = client.upload("garment", garment_png)
    return {"person": person["picture"], "garment": garment["picture"]}


def url_of(mask):
    return "data:image/png;base64," + base64.b64encode(png(Image.fromarray(mask))).decode()


def error(answer):
    status, content = answer
    message = content["error"]["message"]
    assert "\n" not in message
    return status, content["error"]["picture"], message


# ---- the way through ----


def test_two_pictures_become_a_try_on(client, ids):
    status, seen = client.post("/person", {"picture": ids["person"], "category": "upper_body"})
    assert status == 200 and len(seen["frame"]) == 4
    mask = Image.open(io.BytesIO(base64.b64decode(seen["mask"].partition(",")[2])))
    share = (np.asarray(mask) > 0).mean()
    assert mask.size == people.photo(1).size and 0.05 < share < 0.6
    assert client.post("/garment", {"picture": ids["garment"]}) == (200, {"warnings": []})
    status, job = client.post("/jobs", ids | {"seed": 5, "count": 2, "steps": 2})
    assert status == 202
    done = client.finished(job["job"])
    assert done["state"] == "done" and done["done"] == done["total"] == 4
    assert len(done["pictures"]) == 2
    for place, address in enumerate(done["pictures"]):
        status, headers, content = client.send("GET", address)
        picture = Image.open(io.BytesIO(content))
        assert status == 200 and headers["content-type"] == "image/png"
        assert picture.size == people.photo(1).size
        told = json.loads(picture.text["vton"])
        assert told["seed"] == 5 + place and told["steps"] == 2 and told["mask"] == "detected"
        changed = (np.asarray(picture) != np.asarray(people.photo(1))).any(2)
        assert changed.any() and not changed[:20].any()


def test_a_painted_mask_is_what_changes(client, ids):
    photo = np.asarray(people.photo(1))
    painted = np.zeros(photo.shape[:2], np.uint8)
    painted[200:260, 150:220] = 255
    _, job = client.post("/jobs", ids | {"mask": url_of(painted)})
    done = client.finished(job["job"])
    _, _, content = client.send("GET", done["pictures"][0])
    picture = np.asarray(Image.open(io.BytesIO(content)))
    rows, columns = (picture != photo).any(2).nonzero()
    assert rows.min() > 180 and rows.max() < 280 and columns.min() > 130 and columns.max() < 240


def test_what_the_page_gets_as_a_mask_it_may_send_back(client, ids):
    """White on black with alpha, as its canvas writes it."""
    _, seen = client.post("/person", {"picture": ids["person"], "category": "upper_body"})
    mask = Image.open(io.BytesIO(base64.b64decode(seen["mask"].partition(",")[2])))
    _, job = client.post("/jobs", ids | {"mask": url_of(np.array(mask.convert("RGBA")))})
    assert client.finished(job["job"])["state"] == "done"


def test_other_pictures_in_the_place_of_a_mask_are_refused(client, ids):
    photo = np.asarray(people.photo(1))
    status, picture, message = error(client.post("/jobs", ids | {"mask": url_of(photo)}))
    assert (status, picture) == (422, "mask") and "it looks like a photograph" in message
    strokes = np.zeros((*photo.shape[:2], 4), np.uint8)
    strokes[200:260, 150:220, 3] = 255  # black on nothing
    status, picture, message = error(client.post("/jobs", ids | {"mask": url_of(strokes)}))
    assert (status, picture) == (422, "mask") and "is a cut-out" in message


def test_the_page_comes_from_one_place_and_asks_nobody_else(client):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "javascript")):
        status, headers, content = client.send("GET", path)
        assert status == 200 and kind in headers["content-type"]
        assert b"http://" not in content and b"https://" not in content
        assert b" style=" not in content and b"onclick" not in content
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    for kind in ("person", "garment"):
        status, headers, content = client.send("GET", f"/example/{kind}.jpg")
        assert status == 200 and Image.open(io.BytesIO(content)).size == (768, 1024)


# ---- errors, beside the picture that they concern ----


def test_errors_name_their_picture(client, ids, person_png, garment_png):
    _, nobody = client.upload("person", garment_png)
    assert error(client.post("/person", {"picture": nobody["picture"]}))[:2] == (422, "person")
    _, worn = client.upload("garment", person_png)
    status, picture, message = error(client.post("/garment", {"picture": worn["picture"]}))
    assert (status, picture) == (422, "garment") and "a person is in" in message
    _, job = client.post("/jobs", ids | {"garment": worn["picture"]})
    failed = client.finished(job["job"])
    assert failed["state"] == "failed" and failed["error"]["picture"] == "garment"
    height, width = np.asarray(people.photo(1)).shape[:2]
    _, job = client.post("/jobs", ids | {"mask": url_of(np.zeros((height, width), np.uint8))})
    failed = client.finished(job["job"])
    assert failed["error"]["picture"] == "mask" and "is empty" in failed["error"]["message"]


WRONG = {
    "a picture that is not there": ({"person": "none"}, 404, "person"),
    "a path for a picture": ({"person": "../../etc/passwd"}, 404, "person"),
    "a list for a picture": ({"garment": ["x"]}, 404, "garment"),
    "a category never trained": ({"category": "dresses"}, 422, "garment"),
    "no category": ({"category": "hats"}, 422, "garment"),
    "too many pictures": ({"count": 5}, 422, ""),
    "half a picture": ({"count": 1.5}, 422, ""),
    "no seed": ({"seed": "x"}, 422, ""),
    "half a seed": ({"seed": 2.5}, 422, ""),
    "a huge seed": ({"seed": 2**40}, 422, ""),
    "a negative guidance": ({"guidance": -1}, 422, ""),
    "no steps": ({"steps": 0}, 422, ""),
    "people": ({"people": "all"}, 422, "person"),
    "no mask": ({"mask": "hello"}, 422, "mask"),
    "a broken mask": ({"mask": "data:image/png;base64,####"}, 422, "mask"),
    "a mask that is no picture": ({"mask": "data:image/png;base64,aGVsbG8="}, 422, "mask"),
    "a mask of 400 million pixels": (
        {"mask": "data:image/png;base64," + base64.b64encode(huge_png(20_000, 20_000)).decode()},
        422,
        "mask",
    ),
    "a mask of another shape": ({"mask": url_of(np.zeros((10, 90), np.uint8))}, 422, "mask"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_before_they_wait(client, ids, name):
    changes, status, picture = WRONG[name]
    found = error(client.post("/jobs", ids | changes))
    assert found[:2] == (status, picture)
    if "seed" in changes:
        assert found[2] == "seed must be a whole number from 0 to 2147483643."


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"nul", b"[" * 100_000])
def test_what_is_no_json_object(client, content):
    headers = {"Content-Type": "application/json"}
    status, _, answer = client.send("POST", "/jobs", content, headers)
    assert status == 400 and "no JSON object" in json.loads(answer)["error"]["message"]
    assert client.send("POST", "/jobs", b"{}", {"Content-Type": "text/plain"})[0] == 415


# ---- hostile uploads change nothing ----


def large_png():
    return huge_png(20_000, 20_000)


def polyglot():
    """A picture that is an archive too."""
    return png(SMALL) + archive()


def page_in_a_comment():
    """A JPEG that a browser would take for a page, had it to guess."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", comment=b"<html><script>x()</script></html>")
    return buffer.getvalue()


HOSTILE = {
    "a picture that is an archive too": (polyglot, "image/png", 422, "something else"),
    "a picture that is a page too": (page_in_a_comment, "image/jpeg", 422, "something else"),
    "400 million pixels": (large_png, "image/png", 422, "million pixels are allowed"),
    "an archive": (archive, "image/png", 422, "something else than a picture"),
    "an SVG": (lambda: b"<svg onload='x()'/>", "image/svg+xml", 422, "something else"),
    "a page in a GIF": (lambda: b"GIF89a<script>x()</script>", "image/gif", 422, "something else"),
    "text": (lambda: b"hello", "text/html", 415, "send the picture's bytes"),
    "nothing": (lambda: b"", "image/png", 422, "is empty"),
    "a form with a path in its file name": (
        lambda: (
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="../../../tmp/evil.png"'
            b"\r\nContent-Type: image/png\r\n\r\nhello\r\n--x--\r\n"
        ),
        "multipart/form-data; boundary=x",
        415,
        "send the picture's bytes",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_refused_in_one_line_and_changes_nothing(
    client, demo, name, tmp_path, monkeypatch
):
    make, mime, status, message = HOSTILE[name]
    before = dict(demo.pictures._pictures)
    monkeypatch.chdir(tmp_path)
    found = error(client.upload("garment", make(), mime))
    assert found[0] == status and found[1] == "garment" and message in found[2]
    assert demo.pictures._pictures == before and not list(tmp_path.iterdir())
    assert client.get("/about")[1]["state"] == "ready"


def test_300_mb_are_refused_before_they_are_sent(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(
            b"POST /pictures/person HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 314572800\r\n\r\n" + b"\0" * 1000
        )
        answer = connection.recv(4096)
    assert b" 413 " in answer.splitlines()[0]


def test_300_mb_without_a_length_are_cut_off(client, monkeypatch):
    monkeypatch.setattr(served, "MOST_BYTES", 2 * 2**20)
    chunk = b"10000\r\n" + b"\0" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(
            b"POST /pictures/person HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            for _ in range(4800):
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass
        assert sent < 4800
    assert client.get("/about")[1]["state"] == "ready"


def test_a_slow_body_is_given_up(client, monkeypatch):
    monkeypatch.setattr(served, "IDLE_BODY", 0.3)
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(
            b"POST /pictures/person HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1000\r\n\r\nabc"
        )
        started = time.monotonic()
        answer = connection.recv(4096)
    assert b" 408 " in answer.splitlines()[0] and time.monotonic() - started < 5


def test_a_body_that_drips_is_given_up(client, monkeypatch):
    """Every byte comes in time, the whole never does."""
    monkeypatch.setattr(served, "SLOW_BODY", 0.5)
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(
            b"POST /pictures/person HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100000\r\n\r\n"
        )
        started = time.monotonic()
        connection.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - started < 10:
            try:
                connection.sendall(b"x")
                answer = connection.recv(4096)
            except TimeoutError:
                continue
    assert b" 408 " in answer.splitlines()[0]


def test_a_request_with_too_large_a_mask_is_refused(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(
            b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % (served.MOST_JSON + 1)
        )
        answer = connection.recv(4096)
    assert b" 413 " in answer.splitlines()[0]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "", "localhost."])
def test_other_names_of_this_machine_are_refused(client, host):
    status, _, content = client.send("GET", "/", headers={"Host": host})
    assert status in (400, 421) and b"<html" not in content
    assert status == 400 or b"--allow-host" in content


def test_names_that_were_allowed(try_on):
    demo = Demo(lambda: try_on, hosts=("Fitting.example:7860", "[fe80::1]"))
    with serving(demo) as port:
        for host in ("fitting.example", "fitting.example:7860", "[fe80::1]:80"):
            assert Client(port).send("GET", "/", headers={"Host": host})[0] == 200
        assert Client(port).send("GET", "/", headers={"Host": "example"})[0] == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_other_sites_are_refused(client, origin, person_png):
    status, answer = client.upload("person", person_png, Origin=origin)
    assert status == 403 and "other sites" in answer["error"]["message"]


def test_the_page_itself_may_ask(client, person_png):
    address = f"127.0.0.1:{client.port}"
    assert client.upload("person", person_png, Origin=f"http://{address}", Host=address)[0] == 201


def test_unknown_addresses(answered, client):
    number = "1" * 5000
    for path in ("/nothing", "/jobs/unknown", "/jobs/unknown/0.png", f"/jobs/unknown/{number}.png",
                 "/example/cat.jpg", "/..%2f..%2fetc/passwd", "/page/page.js"):  # fmt: skip
        assert answered("GET", path)[0] == 404
    assert client.send("POST", "/pictures/cat", b"x", {"Content-Type": "image/png"})[0] == 404
    assert answered("PUT", "/jobs", b"x") == (405, "", "method not allowed at this address.")
    assert client.send("PUT", "/jobs", b"x")[1]["allow"] == "POST"


# ---- the queue ----


class Slow:
    """A TryOn whose drawing waits for leave before every step."""

    def __init__(self, try_on):
        self.real = try_on
        self.steps = threading.Semaphore(0)
        self.drawn = 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def total_steps(self, count, steps):
        return 50

    def draw(self, person, garments, watch, **settings):
        for step in range(50):
            self.steps.acquire()
            self.drawn = step + 1
            watch(step + 1, 50)
        return []


@pytest.fixture
def slow(try_on):
    slow = Slow(try_on)
    demo = Demo(lambda: slow)
    with serving(demo) as port:
        client = Client(port)
        while client.get("/about")[1]["state"] == "loading":
            time.sleep(0.02)
        yield slow, client
        slow.steps.release(10_000)


def until(look):
    for _ in range(1000):
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("waited for nothing")


def test_a_job_reports_its_steps_and_cancelling_stops_it(slow, person_png, garment_png):
    slow, client = slow
    ids = {
        "person": client.upload("person", person_png)[1]["picture"],
        "garment": client.upload("garment", garment_png)[1]["picture"],
    }
    job = client.post("/jobs", ids)[1]["job"]
    waiting = client.post("/jobs", ids)[1]["job"]
    slow.steps.release(3)
    until(lambda: client.get(f"/jobs/{job}")[1]["done"] == 3)
    seen = client.get(f"/jobs/{waiting}")[1]
    assert seen["state"] == "queued" and seen["before"] == 1
    assert client.send("DELETE", f"/jobs/{waiting}")[0] == 200
    assert client.get(f"/jobs/{waiting}")[1]["state"] == "cancelled"
    client.send("DELETE", f"/jobs/{job}")
    slow.steps.release(1)
    assert client.finished(job)["state"] == "cancelled"
    slow.steps.release(5)
    time.sleep(0.1)
    assert slow.drawn == 4  # not one step more than the one that was under way


def test_a_full_queue_says_so(slow, person_png, garment_png):
    _, client = slow
    ids = {
        "person": client.upload("person", person_png)[1]["picture"],
        "garment": client.upload("garment", garment_png)[1]["picture"],
    }
    first = client.post("/jobs", ids)[1]["job"]
    until(lambda: client.get(f"/jobs/{first}")[1]["state"] == "running")
    for _ in range(WAITING):
        assert client.post("/jobs", ids)[0] == 202
    status, _, message = error(client.post("/jobs", ids))
    assert status == 429 and "are waiting already" in message


def test_a_run_that_cannot_be_loaded_says_why():
    from vton.errors import UserError

    def load():
        raise UserError("runs/none is not a run folder.")

    with serving(Demo(load)) as port:
        client = Client(port)
        about = until(lambda: (seen := client.get("/about")[1])["state"] == "failed" and seen)
        assert about["message"] == "runs/none is not a run folder."


def test_a_fault_of_the_server_is_one_line_without_details(capsys):
    worker = Worker()
    job = worker.submit(lambda job: 1 / 0)
    job.finished.wait(5)
    assert served.told(job.error)["message"] == "the server failed; its terminal says why."
    worker.stop()
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.fixture
def answered(client):
    """Whatever the server does wrong is answered in JSON."""

    def asked(method, path, body=b""):
        status, headers, content = client.send(
            method, path, body, {"Content-Type": "application/json"}
        )
        assert headers["content-type"] == "application/json"
        return error((status, json.loads(content)))

    return asked


def test_a_fault_outside_the_worker_is_json_too(answered, monkeypatch, capsys):
    monkeypatch.setattr(served, "example_picture", lambda kind: 1 / 0)
    assert answered("GET", "/example/person.jpg") == (
        500, "", "the server failed; its terminal says why.",
    )  # fmt: skip
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_fault_of_the_worker_is_json_too(answered, ids, demo, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(demo, "_prepared", fail)
    body = json.dumps({"picture": ids["person"]}).encode()
    status, picture, message = answered("POST", "/person", body)
    assert (status, picture) == (500, "") and message.startswith("the server failed")
    assert capsys.readouterr().err.count("RuntimeError: /secret/path") == 1


def test_old_pictures_are_forgotten():
    kept = Pictures()
    first = kept.add(Image.new("RGB", (4, 4)))
    others = [kept.add(Image.new("RGB", (4, 4))) for _ in range(30)]
    assert kept.find(first) is None and kept.find(others[-1]) is not None
    large = Image.new("L", (12_000, 12_000))
    kept.add(large)
    newest = kept.add(large)
    assert kept.find(others[-1]) is None and kept.find(newest) is large


def test_finished_jobs_hold_no_picture():
    """Neither what they drew from, nor the variables on an error's way."""

    def fail(picture):
        try:
            raise KeyError(picture)
        except KeyError:
            raise ValueError("too dark") from None

    worker = Worker()
    held = []
    for work in (lambda picture: picture.size, fail):
        picture = Image.new("RGB", (4, 4))
        held.append(weakref.ref(picture))
        job = worker.submit(lambda job, work=work, picture=picture: work(picture))
        del picture
        assert job.finished.wait(5) and worker.find(job.id) is job
    gc.collect()
    assert [one() for one in held] == [None, None]
    worker.stop()


def test_what_the_page_waits_for_is_forgotten_when_it_is_answered(client, demo, ids):
    before = set(demo.worker._jobs)
    client.post("/garment", {"picture": ids["garment"]})
    client.post("/person", {"picture": ids["garment"]})
    assert set(demo.worker._jobs) <= before


def test_results_are_kept_up_to_a_number_and_a_size(monkeypatch):
    monkeypatch.setattr(jobs, "MOST_BYTES", 100)

    def sized(job, size):
        job.size = size

    worker = Worker()
    done = []
    for size in (40, 40, 40, 200, 0):
        done.append(worker.submit(lambda job, size=size: sized(job, size)))
        assert done[-1].finished.wait(5)
    assert [worker.find(job.id) is job for job in done] == [False, False, False, True, True]
    for _ in range(KEPT):
        worker.submit(lambda job: None).finished.wait(5)
    assert worker.find(done[-1].id) is None and len(worker._jobs) == KEPT
    worker.stop()
