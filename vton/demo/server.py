"""The server of `vton demo`: pictures in, masks and drawn pictures out, all else refused.

    GET    /                        the page, /page.css and /page.js
    GET    /about                   the run, its categories and defaults; "loading" at first
    GET    /example/{kind}.jpg      a rendered person, a rendered garment
    POST   /pictures/{kind}         a picture's bytes -> its id and size
    POST   /person                  {picture, category, people} -> frame, mask, warnings
    POST   /garment                 {picture} -> warnings
    POST   /jobs                    {person, garment, category, mask, seed, ...} -> the job's id
    GET    /jobs/{id}               its state and progress
    DELETE /jobs/{id}               stops it
    GET    /jobs/{id}/{number}.png  a drawn picture, with its settings inside the file

Errors are {"error": {"picture": "person" | "garment" | "mask" | "", "message": one line}}.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import traceback
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vton import __version__
from vton.demo.jobs import Job, QueueFull, Worker
from vton.demo.pictures import Pictures
from vton.errors import UserError, one_line
from vton.photos.errors import PhotoError
from vton.photos.reading import MOST_BYTES, read_mask, read_picture

if TYPE_CHECKING:
    from vton.tryon import TryOn

MOST_JSON = 8 * 2**20  # bytes: a painted mask is the largest part
SLOW_BODY = 60.0  # seconds for a whole upload
IDLE_BODY = 10.0  # seconds without a byte of it
MASK_SIDE = 1024  # px of the longer side of masks that the page gets
MOST_COUNT, MOST_STEPS, MOST_GUIDANCE = 4, 200, 30.0
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# Nothing from elsewhere, nothing inline, nobody's frame; pictures from memory and from the camera.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, message: str, picture: str = ""):
        super().__init__(message)
        self.status = status
        self.message = message
        self.picture = picture


class Demo:
    """What the addresses do. load: makes the TryOn; called by the worker as its first job.

    hosts: further names under which the page may be asked for.
    """

    def __init__(self, load: Callable[[], TryOn], hosts: tuple[str, ...] = ()):
        self.worker = Worker()
        self.pictures = Pictures()
        self.loading = self.worker.submit(lambda job: load())
        self.hosts = (*LOOPBACK, *map(without_port, hosts))
        self.people: dict[tuple, Any] = {}  # of the last few pictures

    @property
    def app(self) -> ASGIApp:
        routes = [Route(path, self.page) for path in PAGE]
        routes += [
            Route("/about", _answering(self.about)),
            Route("/example/{kind}.jpg", _answering(self.example)),
            Route("/pictures/{kind}", _answering(self.upload), methods=["POST"]),
            Route("/person", _answering(self.person), methods=["POST"]),
            Route("/garment", _answering(self.garment), methods=["POST"]),
            Route("/jobs", _answering(self.submit), methods=["POST"]),
            Route("/jobs/{id}", _answering(self.look), methods=["GET"]),
            Route("/jobs/{id}", _answering(self.cancel), methods=["DELETE"]),
            Route("/jobs/{id}/{number}.png", _answering(self.picture)),
        ]
        return Guard(Starlette(routes=routes, exception_handlers=NO_ROUTE), self.hosts)

    async def page(self, request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        content = files("vton.demo").joinpath("page", name).read_bytes()
        return Response(content, media_type=kind)

    async def about(self, request: Request) -> Response:
        if not self.loading.finished.is_set():
            return JSONResponse({"state": "loading", "version": __version__})
        if self.loading.error is not None:
            message = one_line(self.loading.error)
            return JSONResponse({"state": "failed", "version": __version__, "message": message})
        try_on = self.loading.result
        height, width = try_on.config.data.picture_size
        sampler = try_on.config.sampler
        return JSONResponse(
            {
                "state": "ready",
                "version": __version__,
                "run": str(try_on.stages[-1].run.path),
                "model": try_on.config.model.label,
                "size": f"{width}x{height}",
                "categories": try_on.categories,
                "steps": sampler.steps,
                "guidance": sampler.guidance,
                "licences": try_on.networks.licences,
                "most_bytes": MOST_BYTES,
            }
        )

    async def example(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in ("person", "garment"):
            raise Refused(404, "there is no such example.")
        content = await asyncio.to_thread(example_picture, kind)
        return Response(content, media_type="image/jpeg")

    async def upload(self, request: Request) -> Response:
        """Read within limits, whatever the request says of itself."""
        kind = request.path_params["kind"]
        if kind not in ("person", "garment"):
            raise Refused(404, f"pictures are of a person or a garment, not {kind[:20]!r}.")
        declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not (declared.startswith("image/") or declared == "application/octet-stream"):
            raise Refused(
                415, "send the picture's bytes as they are, as image/jpeg or image/png.", kind
            )
        content = await body(request, MOST_BYTES, kind)
        picture = await asyncio.to_thread(read_picture, content, kind)
        width, height = picture.size
        id_ = self.pictures.add(picture)
        return JSONResponse({"picture": id_, "width": width, "height": height}, status_code=201)

    async def person(self, request: Request) -> Response:
        """The person's frame and mask, in pixels of the photo reduced to MASK_SIDE."""
        asked = await json_body(request)
        photo = self._picture(asked, "picture", "person")
        category, choice = self._category(asked), self._choice(asked)
        prepared = await self._done(
            lambda job: self._prepared(asked["picture"], photo, category, choice)
        )
        frame = prepared.frame
        mask = mask_of_photo(prepared)
        return JSONResponse(
            {
                "frame": [
                    frame.left / photo.width,
                    frame.top / photo.height,
                    frame.width / photo.width,
                    frame.height / photo.height,
                ],
                "mask": data_url(mask),
                "warnings": prepared.warnings,
            }
        )

    async def garment(self, request: Request) -> Response:
        asked = await json_body(request)
        photo = self._picture(asked, "picture", "garment")
        prepared = await self._done(lambda job: self.loading.result.garment(photo))
        return JSONResponse({"warnings": prepared.warnings})

    async def submit(self, request: Request) -> Response:
        """Everything is checked now; the drawing waits for its turn."""
        asked = await json_body(request)
        person = self._picture(asked, "person", "person")
        garment = self._picture(asked, "garment", "garment")
        category, choice = self._category(asked), self._choice(asked)
        settings = {
            "seed": number(asked, "seed", 0, 2**31 - 1 - MOST_COUNT, int, 0),
            "count": number(asked, "count", 1, MOST_COUNT, int, 1),
            "steps": number(asked, "steps", 1, MOST_STEPS, int, None),
            "guidance": number(asked, "guidance", 0.0, MOST_GUIDANCE, float, None),
        }
        mask = await asyncio.to_thread(painted_mask, asked.get("mask"), person.size)
        ready = self._ready()
        ready.samplers(settings["steps"], settings["guidance"])

        def draw(job: Job) -> list[bytes]:
            from vton.tryon.session import with_mask

            job.report(0, ready.total_steps(settings["count"], settings["steps"]))
            prepared = self._prepared(asked["person"], person, category, choice)
            if mask is not None:
                prepared = with_mask(prepared, mask)
            job.report(0, job.total)
            product = ready.garment(garment)
            drawn = ready.draw(prepared, [product], **settings, watch=job.report)
            facts = settings | {
                "category": category,
                "mask": "painted" if mask is not None else "detected",
                "run": str(ready.stages[-1].run.path),
                "model": ready.config.model.label,
                "vton": __version__,
            }
            pictures = [png(one.picture, facts | {"seed": one.seed}) for one in drawn]
            job.size = sum(map(len, pictures))
            return pictures

        job = self.worker.submit(draw)
        return JSONResponse({"job": job.id}, status_code=202)

    async def look(self, request: Request) -> Response:
        job = self._job(request)
        answer: dict[str, Any] = {"state": job.state, "done": job.done, "total": job.total}
        if job.state == "queued":
            answer["before"] = self.worker.place(job)
        if job.state == "done":
            answer["pictures"] = [f"/jobs/{job.id}/{place}.png" for place in range(len(job.result))]
            answer["seconds"] = round(job.seconds, 2)
        if job.state == "failed":
            answer["error"] = told(job.error)
        return JSONResponse(answer)

    async def cancel(self, request: Request) -> Response:
        job = self._job(request)
        job.cancel()
        return JSONResponse({"state": job.state, "done": job.done, "total": job.total})

    async def picture(self, request: Request) -> Response:
        job = self._job(request)
        drawn = job.result if job.state == "done" else []
        pictures = {str(place): picture for place, picture in enumerate(drawn)}
        if request.path_params["number"] not in pictures:
            raise Refused(404, "there is no such picture.")
        return Response(pictures[request.path_params["number"]], media_type="image/png")

    def _job(self, request: Request) -> Job:
        job = self.worker.find(request.path_params["id"])
        if job is None or job is self.loading:
            raise Refused(404, "there is no such job, or it is too long ago.")
        return job

    def _ready(self) -> TryOn:
        if not self.loading.finished.is_set():
            raise Refused(503, "the networks are still being loaded. Try again in a moment.")
        if self.loading.error is not None:
            raise Refused(503, one_line(self.loading.error))
        return self.loading.result

    async def _done(self, work: Callable[[Job], Any]) -> Any:
        """The result of a short job. Raises what it raised, Refused for a fault of the server."""
        self._ready()
        job = self.worker.submit(work)
        try:
            while not job.finished.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            job.cancel()
            raise
        finally:
            self.worker.forget(job)  # its result is the answer, and nobody knows its name
        if isinstance(job.error, UserError | Refused):
            raise job.error
        if job.error is not None:  # which the worker has printed
            raise Refused(500, told(job.error)["message"])
        if job.state == "cancelled":
            raise Refused(503, "the server is stopping.")
        return job.result

    def _prepared(self, id_: str, photo: Image.Image, category: str, choice: str) -> Any:
        """A person made ready; once for each picture and category. Runs in the worker."""
        key = (id_, category, choice)
        if key not in self.people:
            prepared = self.loading.result.person(photo, category, choice=choice)
            while len(self.people) >= 4:
                del self.people[next(iter(self.people))]
            self.people[key] = prepared
        return self.people[key]

    def _picture(self, asked: dict[str, Any], key: str, kind: str) -> Image.Image:
        picture = self.pictures.find(asked.get(key))
        if picture is None:
            raise Refused(
                404, f"the {kind}'s picture is not here, or no longer. Choose it again.", kind
            )
        return picture

    def _category(self, asked: dict[str, Any]) -> str:
        category = asked.get("category", "upper_body")
        known = self._ready().categories
        if category not in known:
            raise Refused(422, f"category must be one of {', '.join(known)}.", "garment")
        return category

    def _choice(self, asked: dict[str, Any]) -> str:
        choice = asked.get("people", "only")
        if choice not in ("only", "largest"):
            raise Refused(422, "people must be only or largest.", "person")
        return choice


class Guard:
    """Around the whole application: names of the host, other sites, and headers of every answer."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]):
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message.get("headers", []), *given]}
            await send(message)

        request = Request(scope)
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        refused = None
        if without_port(host) not in self.hosts:
            refused = Refused(
                421,
                "this address is not served here. Use the one that was printed, or start vton demo "
                "with --allow-host and the name in the address.",
            )
        elif scope["method"] not in ("GET", "HEAD") and origin not in (None, f"http://{host}"):
            refused = Refused(403, "requests from other sites are refused.")
        if refused is not None:
            await answer_of(refused)(scope, receive, send_guarded)
            return
        await self.app(scope, receive, send_guarded)


async def _no_route(request: Request, error: Exception) -> Response:
    answer = answer_of(Refused(error.status_code, f"{error.detail.lower()} at this address."))
    answer.headers.update(error.headers or {})  # the methods that there are
    return answer


NO_ROUTE = {404: _no_route, 405: _no_route}


def without_port(host: str) -> str:
    """The name of a Host header."""
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdigit() else host.lower()


def _answering(handle: Callable) -> Callable:
    """The handler, with everything that it raises as an answer of one line."""

    async def handled(request: Request) -> Response:
        try:
            return await handle(request)
        except ClientDisconnect:
            return Response(status_code=400)
        except (Refused, UserError) as error:
            return answer_of(error)
        except Exception as error:
            traceback.print_exc()  # for whoever runs the server; the page gets one line
            return answer_of(error)

    return handled


def answer_of(error: Exception) -> Response:
    status = 422 if isinstance(error, UserError) else 500
    if isinstance(error, Refused):
        status = error.status
    if isinstance(error, QueueFull):
        status = 429
    # A connection whose body was not read to the end cannot be used again.
    return JSONResponse({"error": told(error)}, status, headers={"Connection": "close"})


def told(error: Exception) -> dict[str, str]:
    """An error as the page gets it: which picture it concerns, and one line."""
    if isinstance(error, Refused | PhotoError):
        return {"picture": error.picture, "message": error.message}
    if isinstance(error, UserError):
        return {"picture": "", "message": str(error)}
    return {"picture": "", "message": "the server failed; its terminal says why."}


async def body(request: Request, most: int, picture: str = "") -> bytes:
    """The request's body. Raises Refused where it is too long or too slow."""
    length = request.headers.get("content-length", "0")
    message = f"at most {most // 2**20} MB are allowed. Save a smaller copy of the picture."
    too_long = Refused(413, message, picture)
    if not length.isdecimal() or int(length) > most:
        raise too_long
    content = bytearray()
    chunks = request.stream()
    try:
        async with asyncio.timeout(SLOW_BODY):
            while True:
                async with asyncio.timeout(IDLE_BODY):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return bytes(content)
                content += chunk
                if len(content) > most:
                    raise too_long
    except TimeoutError:
        raise Refused(408, "the upload was too slow. Try again.", picture) from None


async def json_body(request: Request) -> dict[str, Any]:
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != "application/json":
        raise Refused(415, "send application/json.")
    try:
        asked = json.loads(await body(request, MOST_JSON))
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise Refused(400, "the request is no JSON object.")
    return asked


def number(
    asked: dict[str, Any], key: str, low: float, high: float, kind: type, default: float | None
) -> Any:
    """A number of a request within bounds; the default where it is absent. Raises Refused."""
    value = asked.get(key)
    if value is None:
        return default
    right = type(value) is int or (kind is float and type(value) is float)
    if not right or not low <= value <= high:
        what = "whole number" if kind is int else "number"
        raise Refused(422, f"{key} must be a {what} from {low} to {high}.")
    return kind(value)


def painted_mask(url: object, size: tuple[int, int]) -> Image.Image | None:
    """The mask of a data URL, at the size of its photo. Raises Refused, PhotoError."""
    if url is None:
        return None
    prefix = "data:image/png;base64,"
    if not isinstance(url, str) or not url.startswith(prefix):
        raise Refused(422, "mask must be a PNG as a data URL.", "mask")
    try:
        content = base64.b64decode(url.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, "mask is no base64.", "mask") from None
    mask = read_mask(content)
    if abs(mask.width / mask.height / (size[0] / size[1]) - 1) > 0.02:
        raise Refused(422, "mask has another shape than the photo.", "mask")
    return mask.resize(size, Image.Resampling.BILINEAR)


def mask_of_photo(prepared: Any) -> Image.Image:
    """Where a prepared person is repainted, as a grey picture of the photo reduced to MASK_SIDE."""
    ratio = min(1.0, MASK_SIDE / max(prepared.photo.size))
    width, height = (max(1, round(side * ratio)) for side in prepared.photo.size)
    inside = Image.fromarray(prepared.mask)
    frame = prepared.frame
    box_size = (max(1, round(frame.width * ratio)), max(1, round(frame.height * ratio)))
    whole = Image.new("L", (width, height))
    part = inside.convert("L").resize(box_size, Image.Resampling.BILINEAR)
    whole.paste(part, (round(frame.left * ratio), round(frame.top * ratio)))
    return whole.point(lambda value: 255 if value >= 128 else 0)


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def png(picture: Image.Image, facts: dict[str, Any]) -> bytes:
    """A PNG with the settings of its drawing as text inside."""
    told = PngInfo()
    told.add_text("vton", json.dumps(facts))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=told, compress_level=4)
    return buffer.getvalue()


@cache
def example_picture(kind: str) -> bytes:
    """A person, or a garment for them, drawn by the renderer."""
    from vton.photos.examples import garment_picture, person_picture

    picture = person_picture() if kind == "person" else garment_picture()
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
