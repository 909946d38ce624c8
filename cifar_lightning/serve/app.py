"""The web application: the page, ``POST /predict``, ``GET /health`` and ``GET /openapi.json``."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar_lightning.errors import in_words
from cifar_lightning.predictor import Prediction
from cifar_lightning.serve.batching import Answer
from cifar_lightning.serve.desk import Desk, Unreadable
from cifar_lightning.serve.uploads import Part, Refused, Store, Upload, drain, read_uploads

log = logging.getLogger(__name__)

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/openapi.json": ("openapi.json", "application/json"),
}
"""Files of serve/page by their path on the server, and their types."""

SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every answer: the page loads nothing from elsewhere, and runs nothing but its own script."""

BODIES_AT_ONCE = 16
"""The bodies that are held at one moment are together as large as so many of the largest."""

RETRY_SECONDS = 1


def make_app(desk: Desk, *, topk: int, hosts: Sequence[str] | None) -> Starlette:
    """The web application over a desk that is open.

    Args:
        desk: Answers about pictures.
        topk: Classes that are told of each picture, unless the request says otherwise.
        hosts: Names by which the server may be called; None for any. Without such a list, a page from anywhere could
            have its own name point at this machine, and then read from this server.
    """
    handlers = _Handlers(desk, topk)
    page = [Route(path, _file(name, kind)) for path, (name, kind) in PAGE.items()]
    middleware = [Middleware(_Secured)]
    if hosts is not None:
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False))
    return Starlette(
        routes=[
            Route("/predict", handlers.predict, methods=["POST"]),
            Route("/health", handlers.health),
            *page,
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
    )


class _Secured:
    """Gives every answer the headers of ``SECURITY``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY)
            await send(message)

        await self.app(scope, receive, secured)


class _Handlers:
    def __init__(self, desk: Desk, topk: int) -> None:
        self._desk = desk
        self._topk = topk
        self._store = Store(round(BODIES_AT_ONCE * desk.limits.max_bytes))

    async def health(self, request: Request) -> Response:
        """What is served, and how much waits."""
        desk, settings = self._desk, self._desk.predictor.settings
        return _json(
            {
                "status": "ok" if desk.has_room(1) else "busy",
                "model": settings["name"],
                "network": settings["model"]["name"],
                "classes": len(desk.predictor.classes),
                "image_size": list(desk.predictor.image_size),
                "calibrated": desk.predictor.temperature is not None,
                "queue": desk.num_waiting,
                "max_mb": desk.limits.max_bytes / 1e6,
                "max_files": desk.limits.max_files,
            }
        )

    async def predict(self, request: Request) -> Response:
        """The classes of the pictures of a form."""
        try:
            with self._store.part() as part:
                uploads, topk = await self._read(request, part)
                with self._desk.asked([upload.content for upload in uploads]) as answers:
                    found = await _unless_gone(request, answers)
            return self._answer(uploads, found, topk)
        except Refused as refused:
            return _error(refused.status, str(refused), retry=refused.retry)
        except ClientDisconnect:
            return Response(status_code=499)  # which nobody reads
        except Exception as error:
            log.error("a request failed: %s", in_words(error))
            return _error(500, "the server cannot answer: its log says why")

    async def _read(self, request: Request, part: Part) -> tuple[list[Upload], int]:
        """The files of a request, and how many classes it asks for of each."""
        limits = self._desk.limits
        try:
            _refuse_other_pages(request)
            self._refuse_if_full(1)
            topk = self._asked_topk(request)
            uploads = await read_uploads(request, part, max_bytes=limits.max_bytes, max_files=limits.max_files)
            self._refuse_if_full(len(uploads))
        except Refused:
            part.drop()
            await drain(request)
            raise
        return uploads, topk

    def _refuse_if_full(self, num_files: int) -> None:
        if not self._desk.has_room(num_files):
            raise Refused(503, "too many pictures wait: try again", retry=True)

    def _asked_topk(self, request: Request) -> int:
        asked = request.query_params.get("topk")
        if asked is None:
            return self._topk
        if not (asked.isascii() and asked.isdecimal() and len(asked) < 10) or int(asked) < 1:
            raise Refused(422, "topk must be a whole number of at least 1")
        return int(asked)

    def _answer(self, uploads: Sequence[Upload], found: Sequence[Any], topk: int) -> Response:
        """The predictions of the files that can be read, in their order, and what is wrong with the others."""
        errors = []
        names, probs = [], []
        for index, (upload, result) in enumerate(zip(uploads, found, strict=True)):
            if isinstance(result, Unreadable):
                errors.append({"file": upload.name, "index": index, "error": str(result)})
            elif isinstance(result, BaseException):
                raise result
            else:
                names.append(upload.name)
                probs.append(result)
        predictions = self._desk.predictor.top(torch.stack(probs), topk=topk) if probs else []
        content: dict[str, Any] = {"predictions": list(map(_as_plain, names, predictions))}
        if errors:
            content["error"] = f"{len(errors)} of {len(uploads)} files cannot be read as images"
            content["errors"] = errors
        return _json(content, 422 if errors else 200)


async def _unless_gone(request: Request, answers: Sequence[Answer]) -> list[Any]:
    """Answers, exceptions among them, once all are there.

    Raises:
        ClientDisconnect: If the client goes before.
    """
    answered: asyncio.Future[list[Any]] = asyncio.gather(*map(asyncio.wrap_future, answers), return_exceptions=True)
    gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())  # after the body nothing else comes
    try:
        await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise ClientDisconnect
        return answered.result()
    finally:
        answered.cancel()
        gone.cancel()


def _refuse_other_pages(request: Request) -> None:
    """Refuse what a page of another site has a browser send; its address is in ``Origin``."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Refused(403, "pages of other sites get no answer")


def _as_plain(name: str, prediction: Prediction) -> dict[str, Any]:
    return {
        "file": name,
        "class": prediction.label,
        "probability": prediction.prob,
        "top": [{"class": label, "probability": prob} for label, prob in prediction.top],
    }


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = files("cifar_lightning.serve").joinpath("page", name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return answer


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _error(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
    response.headers.update(error.headers or {})
    return response


def _error(status: int, words: str, *, retry: bool = False) -> Response:
    return _json({"error": words}, status, {"retry-after": str(RETRY_SECONDS)} if retry else None)


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Escaped, as half a surrogate pair in a name could not be encoded.
    return Response(json.dumps(content), status, headers, "application/json")
