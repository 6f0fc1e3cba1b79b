"""The JSON endpoint: an upload in, masks and figures out, nothing kept."""

from __future__ import annotations

import asyncio
import base64
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import spiritseg
from spiritseg.deploy.serve.students import Students, jpeg_url, png, png_url
from spiritseg.deploy.serve.uploads import (
    Limits,
    TooLargeError,
    UnknownKindError,
    is_video,
    read_still,
    read_video,
)
from spiritseg.errors import BadImageError, ConfigError, DataError, MissingExtraError

__all__ = ["make_endpoint"]

_MULTIPART = 64 * 1024  # bytes that a form adds to its file at the most
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TooLargeError, 413),
    (UnknownKindError, 415),
    (MissingExtraError, 415),
    (ConfigError, 404),
    (DataError, 422),
    (Exception, 500),
)


def make_endpoint(students: Students, limits: Limits) -> FastAPI:
    """Make the application that answers under /api.

    Args:
        students: what is served.
        limits: of uploads.

    Returns:
        ``POST /api/predict`` (an image as the form's ``file``; ``student``, ``mask=1``),
        ``POST /api/compare`` (an image or a video, all students, in pictures: what the page
        asks for), ``GET /api/students``, ``GET /api/health``. Errors are ``{"error": ...}``.
    """
    app = FastAPI(title="spiritseg", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_BoundedBody, limits=limits)
    app.add_exception_handler(HTTPException, _refusal)
    for kind in (*(kind for kind, _ in _STATUS), Exception):
        app.add_exception_handler(kind, _refusal)
    gate = _Gate(limits)

    @app.get("/api/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": spiritseg.__version__, "uploads": gate.inside}

    @app.get("/api/students")
    async def list_students() -> dict[str, Any]:
        return {"students": [_described(students, name) for name in students.names]}

    @app.post("/api/predict")
    async def predict(request: Request) -> JSONResponse:
        async def work(data: bytes, asked: dict[str, str]) -> dict[str, Any]:
            name = asked.get("student") or students.names[0]
            students.get(name)
            with_mask = asked.get("mask", "").lower() in ("1", "true", "yes", "on")
            return await run_in_threadpool(_predict, students, limits, name, data, with_mask)

        return JSONResponse(await gate.through(request, work))

    @app.post("/api/compare")
    async def compare(request: Request) -> JSONResponse:
        async def work(data: bytes, _: dict[str, str]) -> dict[str, Any]:
            return await run_in_threadpool(_compare, students, limits, data)

        return JSONResponse(await gate.through(request, work))

    return app


class _Gate:
    """Lets a few uploads in at once, one of them to the students."""

    def __init__(self, limits: Limits) -> None:
        self.inside = 0
        self._limits = limits
        self._next = asyncio.Lock()

    async def through(
        self,
        request: Request,
        work: Callable[[bytes, dict[str, str]], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        """Receive an upload and work on it when it is its turn."""
        if self.inside >= self._limits.requests:
            raise HTTPException(503, "the server is busy; try again in a few seconds.")
        self.inside += 1
        try:
            data, asked = await self._received(request)
            async with self._next:
                return await work(data, asked)
        except MemoryError:
            raise HTTPException(413, "there is not enough memory for it; scale it down.") from None
        finally:
            self.inside -= 1

    async def _received(self, request: Request) -> tuple[bytes, dict[str, str]]:
        try:
            async with (
                asyncio.timeout(self._limits.patience_s),
                _form(request, self._limits) as form,
            ):
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise _no_file()
                words = {key: value for key, value in form.items() if isinstance(value, str)}
                data = await file.read()
        except TimeoutError:
            raise HTTPException(408, "the upload did not arrive in time.") from None
        except ClientDisconnect:
            raise HTTPException(400, "the upload was broken off.") from None
        if len(data) > self._limits.bytes:
            raise _too_many_bytes(self._limits)
        return data, {**request.query_params, **words}


@asynccontextmanager
async def _form(request: Request, limits: Limits) -> AsyncIterator[FormData]:
    """Parse a form in memory: left to itself, Starlette puts files above 1 MiB on the disk."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise _no_file()
    async with aclosing(request.stream()) as stream:
        parser = MultiPartParser(
            request.headers, stream, max_files=1, max_fields=8, max_part_size=1024
        )
        parser.spool_max_size = limits.bytes + _MULTIPART  # _BoundedBody lets no more through
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from None
    try:
        yield form
    finally:
        await form.close()


class _BoundedBody:
    """Stops receiving a body that is longer than a file may be, or that does not go on."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._limits.bytes + _MULTIPART
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        received = int(announced) if announced.isdigit() else 0
        if received > most:
            await _answer(413, str(_too_many_bytes(self._limits)))(scope, receive, send)
            return
        count = 0
        goes_on = True

        async def counted() -> Message:
            nonlocal count, goes_on
            async with asyncio.timeout(self._limits.silence_s if goes_on else None):
                message = await receive()
            goes_on = message.get("more_body", False)
            count += len(message.get("body", b""))
            if count > most:
                raise _too_many_bytes(self._limits)
            return message

        await self._app(scope, counted, send)


def _predict(
    students: Students, limits: Limits, name: str, data: bytes, with_mask: bool
) -> dict[str, Any]:
    if is_video(data):
        raise UnknownKindError(
            "expected an image; videos are for the page and for spiritseg predict."
        )
    image = read_still(data, limits)
    with students.giving_back():
        found = students.answer(name, image)
    answer = {
        "student": name,
        "classes": list(students.get(name).classes),
        "size": list(found.mask.shape),
        "latency_ms": found.latency_ms,
        "area": found.area,
    }
    return {**answer, "mask": base64.b64encode(png(found.mask)).decode()} if with_mask else answer


def _compare(students: Students, limits: Limits, data: bytes) -> dict[str, Any]:
    with students.giving_back():
        return _compared(students, limits, data)


def _compared(students: Students, limits: Limits, data: bytes) -> dict[str, Any]:
    moments = read_video(data, limits) if is_video(data) else [(0.0, read_still(data, limits))]
    frames: list[dict[str, Any]] = []
    latencies: dict[str, list[float]] = {name: [] for name in students.names}
    size: tuple[int, ...] = ()
    for moment, image in moments:
        size = image.shape[:2]
        found = {name: students.answer(name, image) for name in students.names}
        frames.append(
            {
                "time": moment,
                "image": jpeg_url(image),
                "masks": {n: png_url(a.mask, students.get(n)) for n, a in found.items()},
                "area": {name: one.area for name, one in found.items()},
            }
        )
        for name, one in found.items():
            latencies[name].append(one.latency_ms)
    medians = {name: statistics.median(given) for name, given in latencies.items()}
    return {"size": list(size), "frames": frames, "latency_ms": medians}


def _described(students: Students, name: str) -> dict[str, Any]:
    runtime = students.get(name)
    return {
        "name": name,
        "classes": list(runtime.classes),
        "colours": [list(colour) for colour in runtime.colours],
        "runtime": runtime.name,
        "precision": runtime.card.precision,
        "params": runtime.card.params,
    }


async def _refusal(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return _answer(error.status_code, str(error.detail))
    status = next(code for kind, code in _STATUS if isinstance(error, kind))
    if status == 500:  # the log has the traceback
        return _answer(500, "the server could not segment it; its log says why.")
    said = (
        f"cannot read the upload: {error.reason.rstrip('.')}."
        if isinstance(error, BadImageError)
        else error
    )
    return _answer(status, str(said))


def _answer(status: int, message: str) -> JSONResponse:
    headers = {503: {"Retry-After": "5"}, 408: {"Connection": "close"}}.get(status)
    return JSONResponse({"error": message}, status, headers)


def _no_file() -> HTTPException:
    return HTTPException(422, "expected a form (multipart/form-data) with an image as `file`.")


def _too_many_bytes(limits: Limits) -> TooLargeError:
    return TooLargeError(
        f"the upload has more than the {limits.mebibytes:g} MiB that this server takes."
    )
