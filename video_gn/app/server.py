"""Serves the page and the REST routes of `video-gn app`.

Uploads are read by our own routes, within the bound, into a directory that is gone after the answer. gradio makes the
page, and answers nothing else: mounted into another app it neither checks the files that a client names in an event
(it copies any of the server's) nor their addresses (it fetches them), so the routes of its API are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from video_gn.app.answers import Answers, Upload, UploadError, failure_html
from video_gn.errors import ConfigError, StoppedError
from video_gn.run.signals import StopFlag
from video_gn.shown import shown

log = logging.getLogger(__name__)

# What the page loads: gradio's own scripts and styles, and the sign of life that tells it of a lost connection.
_OPEN = re.compile(
    r"/|/api/(infer|page|health)|/config|/theme\.css|/manifest\.json|/favicon\.ico|/(assets|static|svelte)(/[\w.@-]+)+|"
    r"/gradio_api/(startup-events|heartbeat/\w+)"
)
# Nothing is loaded from, or sent to, another host, whatever gradio's page asks for.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_GRACE_SECONDS = 1
_MOST_REQUESTS = 100  # at once; each may hold an upload on the disk. A browser has up to six connections.
_IDLE_SECONDS = 60  # between two pieces of an upload
_AROUND = 1 << 16  # bytes around the file of a form: boundaries, headers, other fields


class _Gate:
    """ASGI middleware: lets through what the page and our routes need, and has nothing loaded from elsewhere."""

    def __init__(self, app: Any, *, is_local: bool) -> None:
        self.app = app
        self.is_local = is_local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        if scope["type"] == "http" and (not _OPEN.fullmatch(scope["path"]) or ".." in scope["path"]):
            await Response("not found\n", 404, media_type="text/plain")(scope, receive, send_with_policy)
        elif scope["type"] == "http" and (
            reason := _why_foreign(scope["method"], Headers(scope=scope), is_local=self.is_local)
        ):
            await Response(f"{reason}\n", 403, media_type="text/plain")(scope, receive, send_with_policy)
        elif scope["type"] in ("http", "lifespan"):
            await self.app(scope, receive, send_with_policy)


def _why_foreign(method: str, headers: Headers, *, is_local: bool) -> str:
    """Why a request is another website's, which a browser on this machine shows; "" if it is not.

    A website may send a video to any address that its visitor's browser reaches; and, with a name of its own that it
    lets point here, read the answer, too.
    """
    host = headers.get("host", "")
    if is_local and not _is_local_name(re.sub(r":\d*$", "", host).strip("[]")):
        return f"the Host header must be localhost or an IP address, got {shown(host)!r}. A proxy in front must set it."
    # A browser that does not send the first, as over plain http from another machine, sends the second.
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_same = site in ("same-origin", "none") if site else origin is None or origin.partition("://")[2] == host
    return "" if is_same or method != "POST" else "videos from other websites are refused"


def _is_local_name(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return name in ("", "localhost")


def make_app(answers: Answers, *, is_local: bool) -> FastAPI:
    """The app with its routes and page; `is_local` if it listens on this machine alone."""
    from video_gn.app.page import mount_page

    too_large = f"a file must have at most {answers.max_bytes / 1e6:g} MB. Cut it, or start the app with more --max_mb"
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Gate, is_local=is_local)

    @contextlib.asynccontextmanager
    async def received(request: Request) -> AsyncIterator[Upload]:
        with tempfile.TemporaryDirectory(prefix="upload-") as directory:
            yield await _receive(request, Path(directory), answers.max_bytes, too_large)

    @app.post("/api/infer")
    async def infer(request: Request, timeline: bool = False) -> Response:
        try:
            async with received(request) as upload:
                entry = await answers.entry(upload, timeline=timeline)
        except UploadError as error:
            return JSONResponse({"videos": [], "failed": [{"path": error.name, "reason": error.reason}]}, error.status)
        return JSONResponse({"videos": [entry], "failed": []})

    @app.post("/api/page")
    async def page(request: Request, explain: bool = False) -> Response:
        try:
            async with received(request) as upload:
                return HTMLResponse(await answers.page(upload, explain=explain))
        except UploadError as error:
            return HTMLResponse(failure_html(error), error.status)

    @app.get("/api/health")
    async def health() -> dict[str, Any]:
        return answers.about()

    mount_page(app, answers, too_large)
    return app


async def _receive(request: Request, directory: Path, max_bytes: int, too_large: str) -> Upload:
    """Read an upload into a directory: the file of a form, or else the body.

    Raises:
        UploadError: it is larger than `max_bytes`, empty, a form without one file, or does not go on.
    """
    is_form = request.headers.get("content-type", "").startswith("multipart/form-data")
    bound, num_read, receive = max_bytes + _AROUND * is_form, 0, request.receive

    async def bounded() -> Any:
        nonlocal num_read
        try:
            message = await asyncio.wait_for(receive(), _IDLE_SECONDS)
        except TimeoutError as error:
            raise UploadError(f"nothing more came for {_IDLE_SECONDS} s", status=408) from error
        num_read += len(message.get("body", b""))
        if num_read > bound:  # whatever the header says
            raise UploadError(too_large, status=413)
        return message

    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > bound:
        raise UploadError(too_large, status=413)
    request = Request(request.scope, bounded)
    try:
        if is_form:
            upload = await _read_form(request, directory)
        else:
            upload = Upload(directory / "upload", "upload")
            with upload.path.open("wb") as file:
                async for chunk in request.stream():
                    file.write(chunk)
    except ClientDisconnect as error:
        raise UploadError("the connection ended before the file did", status=400) from error
    except OSError as error:
        raise UploadError(f"the upload could not be written ({error.strerror})", status=500) from error
    size = upload.path.stat().st_size
    if size > max_bytes:
        raise UploadError(too_large, upload.name, status=413)
    if size == 0:
        raise UploadError("the file is empty (0 bytes)", upload.name, status=400)
    return upload


async def _read_form(request: Request, directory: Path) -> Upload:
    try:
        form = await request.form(max_files=1, max_fields=8)  # large files come by way of one without a name
    except (MultiPartException, HTTPException) as error:
        detail = error.detail if isinstance(error, HTTPException) else error.message
        raise UploadError(f"the form cannot be read ({detail})", status=400) from error
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(form.close)
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise UploadError("the form must have a file, got none. Send it as in curl -F file=@VIDEO", status=400)
        name = PurePosixPath((files[0].filename or "upload").replace("\\", "/")).name or "upload"
        # FFmpeg looks at a file's ending; the rest of the name is ours.
        ending = re.search(r"\.\w{1,8}$", name, re.ASCII)
        path = directory / f"upload{ending[0] if ending else ''}"
        with path.open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, files[0].file, file)
        return Upload(path, name)


# ---- the process ---------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """Take a port, 0 for any; a ConfigError if it is taken, or there is no such address."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        advice = "Choose another --port, or 0 for any." if error.errno == errno.EADDRINUSE else "Choose another."
        reason = str(error.strerror).partition(" (")[0]  # Python puts the address behind it
        raise ConfigError(f"--host and --port must be free, got {host} {port} ({reason}). {advice}") from error


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Requests under way are given up, each with a traceback.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def serve(answers: Answers, listener: socket.socket) -> None:
    """Serve until a signal, which ends the process with the status 128 + N."""
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        make_app(answers, is_local=ip_address(host).is_loopback),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        limit_concurrency=_MOST_REQUESTS,
    )
    try:
        with StopFlag().installed():  # to which the server hands on the signal that ended it
            log.info("http://%s:%d (Ctrl-C ends it)", f"[{host}]" if ":" in host else host, port)
            _Server(config).run(sockets=[listener])
    except StoppedError as error:
        # At once: torch cannot be interrupted, and Python takes seconds to clear away what gradio has brought.
        sys.stderr.write(f"video-gn: {error}\n")
        sys.stderr.flush()
        os._exit(error.status)
