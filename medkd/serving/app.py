"""The server's pages: upload page, segmentation, health, metrics. Nothing of a scan is kept once it was answered."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medkd import __version__
from medkd.core.errors import DataError, MedkdError
from medkd.core.files import lasting_scratch_folder
from medkd.core.serial import nearest
from medkd.runtime.prediction import CasePredictor
from medkd.serving.gate import Gate
from medkd.serving.limits import BusyError, ForeignPageError, Limits, TooLargeError, TooSlowError
from medkd.serving.metrics import Metrics
from medkd.serving.page import PAGE
from medkd.serving.segmenter import FORMATS, AbandonedError, Answer, Order, Segmenter
from medkd.serving.upload import drain, receive

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_STATUS: dict[type[MedkdError], int] = {TooLargeError: 413, BusyError: 503, TooSlowError: 408, ForeignPageError: 403}
_LEFT = 499  # the client has left: nobody reads it, but it is counted
_POLICY = (
    b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_LONGEST = 2000  # characters of a header
_log = logging.getLogger(__name__)


def make_app(
    predictor: CasePredictor, name: str, limits: Limits | None = None, *, hosts: tuple[str, ...] = LOOPBACK
) -> FastAPI:
    """The application around one loaded model.

    Args:
        predictor: the model.
        name: of the model, as clients see it.
        limits: what is taken.
        hosts: names under which clients may call it (``Host``), so that no other page can reach it by a name of its
            own; ``("*",)`` for any.

    Returns:
        An ASGI application.
    """
    server = _Server(predictor, name, limits or Limits())
    app = FastAPI(
        title="medkd", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=server.lifespan
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.get("/", response_class=HTMLResponse)(server.page)
    app.get("/health")(server.health)
    app.get("/metrics", response_class=PlainTextResponse)(server.metrics_page)
    app.post("/predict")(server.predict)
    app.post("/view")(server.view)
    app.add_middleware(_WithHeaders)
    return app


class _Server:
    """Handlers and what they share."""

    def __init__(self, predictor: CasePredictor, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.metrics, self.gate = Metrics(), Gate(limits.queue)
        self.segmenter = Segmenter(predictor, name, limits, self.metrics)
        self._threads = ThreadPoolExecutor(limits.queue, "scan")  # one each; the networks take turns
        self._place = Path()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """A folder for what is being worked on, as long as the server runs."""
        self._place = lasting_scratch_folder()  # what a killed server leaves, the next one removes
        try:
            yield
        finally:
            self._threads.shutdown(wait=True)
            shutil.rmtree(self._place, ignore_errors=True)

    async def page(self) -> HTMLResponse:
        """The upload page."""
        return HTMLResponse(PAGE)

    async def health(self) -> dict[str, Any]:
        """What is served, and how busy it is."""
        predictor = self.segmenter.predictor
        return {
            "status": "ok",
            "model": self.name,
            "engine": predictor.engine_name,
            "labels": [label for label, _ in predictor.labels.foreground],
            "channels": self.segmenter.channels,
            "formats": list(FORMATS),
            "inside": self.gate.inside,
            "queue": self.gate.most,
            "largest_upload": self.limits.upload,
            "medkd": __version__,
        }

    async def metrics_page(self) -> PlainTextResponse:
        """Counters for Prometheus."""
        return PlainTextResponse(self.metrics.text(self.gate.inside, self.gate.most))

    async def predict(self, request: Request) -> Response:
        """The label map of the scan in the request."""
        return await self._answer(request, False, _file)

    async def view(self, request: Request) -> Response:
        """The same with what the page shows, as JSON."""
        return await self._answer(request, True, _view)

    async def _answer(self, request: Request, view: bool, respond: Callable[[Answer], Response]) -> Response:
        folder: Path | None = None
        try:
            chosen = _format(request)
            _refuse_foreign_page(request)
            with self.gate.place():
                folder = Path(tempfile.mkdtemp(dir=self._place))
                response = await self._segmented(request, folder, chosen, view, respond)
        except AbandonedError:
            response = Response(status_code=_LEFT)
        except MedkdError as error:
            response = _refusal(error)
            await drain(request)
        except Exception:
            _log.exception("a scan failed")
            response = JSONResponse({"error": "The scan could not be segmented; the server's log says why."}, 500)
        finally:
            if folder is not None:
                await asyncio.to_thread(shutil.rmtree, folder, True)
        self.metrics.answered(response.status_code)
        return response

    async def _segmented(
        self, request: Request, folder: Path, chosen: str, view: bool, respond: Callable[[Answer], Response]
    ) -> Response:
        start = time.perf_counter()
        uploads = await receive(request, folder, self.segmenter.channels, self.limits)
        self.metrics.took("upload", time.perf_counter() - start)
        order = Order(folder=folder, uploads=uploads, format=chosen, view=view)
        leaving = asyncio.create_task(_leaving(request, order))
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: respond(self.segmenter.segment(order)))
        finally:
            order.gone.set()
            leaving.cancel()


class _WithHeaders:
    """Headers of every answer: nothing is loaded from elsewhere, kept by browsers or shown inside another page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and the answer with the headers."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, answer)


async def _leaving(request: Request, order: Order) -> None:
    """Note when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    order.gone.set()


def _format(request: Request) -> str:
    """The format that was asked for, of the known ones."""
    asked = request.query_params.get("format", FORMATS[0])
    if asked not in FORMATS:
        raise DataError(f"Unknown format '{asked[:40]}'.{nearest(asked[:40], FORMATS)} Known: {', '.join(FORMATS)}.")
    return asked


def _refuse_foreign_page(request: Request) -> None:
    """A page from elsewhere that a browser shows may not send scans here."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise ForeignPageError("The request comes from a page of another server; open this server's own page.")


def _refusal(error: MedkdError) -> JSONResponse:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 400)
    headers = {"Retry-After": "5"} if status == 503 else {}
    if status in (408, 413, 503):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse({"error": str(error)}, status, headers)


def _file(answer: Answer) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{answer.file.name}"'}
    headers["Server-Timing"] = ", ".join(f"{stage};dur={1000 * took:.1f}" for stage, took in answer.seconds.items())
    if answer.remarks:
        headers["X-Medkd-Remarks"] = " ".join(answer.remarks).encode("ascii", "replace").decode()[:_LONGEST]
    return Response(answer.file.read_bytes(), media_type="application/octet-stream", headers=headers)


def _view(answer: Answer) -> Response:
    content = base64.b64encode(answer.file.read_bytes()).decode()
    found = {"name": answer.file.name, "content": content, "seconds": answer.seconds, "remarks": answer.remarks}
    return JSONResponse({**found, **(answer.view or {})})
