"""What a live source is, and how FFmpeg opens it.

Each kind has its own list of protocols, and none of them is `file`: a playlist from the network cannot read local
files. A pipe is read by this process, since a wait of FFmpeg in a pipe cannot be ended.
"""

from __future__ import annotations

import os
import re
import select
import socket
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from video_gn.decoding.opening import OPTIONS, TIMEOUT_VARIABLE, choose_stream, describe
from video_gn.errors import ConfigError, DecodeError

_HTTP = {"protocol_whitelist": "http,https,tcp,tls,httpproxy,crypto", "format": "hls"}
_RTSP = {"protocol_whitelist": "tcp,tls,rtp,udp", "format": "rtsp", "rtsp_flags": "prefer_tcp"}
# Scheme -> FFmpeg's options; "format" is one that others may not have, since it opens what a text names.
_SCHEMES: dict[str, dict[str, str]] = {
    "rtsp": _RTSP,
    "rtsps": _RTSP,
    "http": _HTTP,
    "https": _HTTP,
    "udp": {"protocol_whitelist": "udp", "overrun_nonfatal": "1"},  # a full buffer loses packets, not the source
    "tcp": {"protocol_whitelist": "tcp"},
}
_CAMERA_FORMAT = "video4linux2"
_OTHERS = f"{', '.join(f'{scheme}://' for scheme in _SCHEMES)}, a FIFO, or - for standard input"
_KINDS = f"a camera (/dev/video0), {_OTHERS}"
_POLL_SECONDS = 0.2


def masked(text: str) -> str:
    """A source's name without user and password: all between the scheme and the last "@"."""
    return re.sub(r"^([A-Za-z][\w+.-]*:/*+).+@", r"\1***@", text)


@dataclass(frozen=True)
class Source:
    """A live source; `name` is its text as it may be shown."""

    text: str
    name: str
    kind: str  # "url", "camera" or "pipe"

    @property
    def reconnects(self) -> bool:
        """Whether it can be opened again after its end."""
        return self.kind != "pipe"

    def open(
        self, limit: float, *, is_over: Callable[[], bool], on_stall: Callable[[], None]
    ) -> tuple[InputContainer, VideoStream]:
        """Open it, and choose its first video stream.

        Args:
            limit: Seconds to wait for data.
            is_over: Whether to wait no longer for a pipe, which then ends.
            on_stall: Called once each time that a pipe has sent nothing for `limit` after its first data.

        Raises:
            DecodeError: it cannot be reached, sends nothing in time, or no video.
        """
        extra = dict(_SCHEMES.get(self.text.partition("://")[0].lower(), {}) if self.kind == "url" else {})
        more = _CAMERA_FORMAT if self.kind == "camera" else extra.pop("format", "")
        options = {**OPTIONS, "protocol_whitelist": "pipe", **extra}
        options["format_whitelist"] += f",{more}"
        opened: Any = self.text
        if self.kind == "pipe":
            opened = _Pipe(self, limit, is_over=is_over, on_stall=on_stall)
        began = time.monotonic()
        try:
            container = av.open(
                opened,
                mode="r",
                format=_CAMERA_FORMAT if self.kind == "camera" else None,
                options=options,
                metadata_errors="ignore",
                timeout=(limit, limit),
            )
        except av.error.FFmpegError as error:
            # Without the cause, which names the whole address. RTSP calls an interruption invalid data.
            if isinstance(error, av.error.ExitError) or time.monotonic() - began > limit:
                raise self.silent(limit) from None
            raise DecodeError(self.name, self.explain(error)) from None
        try:
            return container, choose_stream(self.name, container)
        except BaseException:
            container.close()
            raise

    def silent(self, limit: float) -> DecodeError:
        """The error for a source that sends nothing."""
        return DecodeError(
            self.name, f"sent nothing for {limit:g} seconds. Is it sending? {TIMEOUT_VARIABLE} sets another limit"
        )

    def explain(self, error: av.error.FFmpegError) -> str:
        """Why it could not be opened, and what to do."""
        if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
            what = "sent nothing that FFmpeg takes for a video"
            if self.kind != "pipe":
                return f"{what} ({describe(error)})"
            return f"{what}. An mp4 needs its index in front (ffmpeg -movflags +faststart), or pipe MPEG-TS or MKV"
        if self.kind == "camera":
            return f"cannot be opened ({describe(error)}). Is it a camera, free, and may this user read it?"
        host = urlsplit(self.text).hostname
        try:
            socket.getaddrinfo(host, None)
        except OSError as unknown:
            return f"its host {host!r} is not known ({unknown.strerror}). Check the name, and this machine's network"
        return f"cannot be opened ({describe(error)}). Check the address, and that it is sending"


def parse_source(text: str) -> Source:
    """Recognize a source; only a path is looked at.

    Raises:
        ConfigError: for what is no live source, or a camera that is not there.
    """
    name = masked(text)
    if text == "-":
        if sys.stdin.isatty():
            raise ConfigError("--live - must have a stream on standard input, got a terminal. Pipe one into it.")
        return Source(text, "standard input", "pipe")
    if scheme := re.match(r"([A-Za-z][\w+.-]*):", text):
        if scheme[1].lower() not in _SCHEMES or "://" not in text:
            raise ConfigError(f"--live must be {_KINDS}, got {name!r}. Choose one of these.")
        return Source(text, name, "url")
    try:
        mode = Path(text).stat().st_mode
    except (OSError, ValueError) as error:
        cameras = ", ".join(map(str, sorted(Path("/dev").glob("video*")))) or "none"
        raise ConfigError(
            f"--live must name a source that is there, got {name!r} ({getattr(error, 'strerror', error)}). "
            f"Cameras here: {cameras}. Other sources: {_OTHERS}."
        ) from error
    if stat.S_ISFIFO(mode):
        return Source(text, name, "pipe")
    if stat.S_ISCHR(mode):
        return Source(text, name, "camera")
    if stat.S_ISREG(mode):
        raise ConfigError(f"--live must be {_KINDS}, got the file {name!r}. Leave --live out to label a file.")
    raise ConfigError(f"--live must be {_KINDS}, got {name!r}. Choose one of these.")


class _Pipe:
    """What FFmpeg reads a pipe through; arguments as `Source.open`."""

    def __init__(
        self, source: Source, limit: float, *, is_over: Callable[[], bool], on_stall: Callable[[], None]
    ) -> None:
        self.name = source.name
        self._source, self._limit, self._is_over, self._on_stall = source, limit, is_over, on_stall
        self._has_sent = False
        # Without O_NONBLOCK opening a FIFO waits for its writer.
        is_stdin = source.text == "-"
        fd = 0 if is_stdin else os.open(source.text, os.O_RDONLY | os.O_NONBLOCK)
        self._file = open(fd, "rb", buffering=0, closefd=not is_stdin)  # noqa: SIM115

    def read(self, size: int) -> bytes:
        """At most so many bytes, as soon as there are some; b"" at the end."""
        began, is_told = time.monotonic(), False
        while not select.select([self._file], [], [], min(_POLL_SECONDS, self._limit))[0]:
            if self._is_over():
                return b""
            if not is_told and time.monotonic() - began > self._limit:
                if not self._has_sent:
                    raise self._source.silent(self._limit)
                is_told = True
                self._on_stall()
        data = self._file.read(size)
        self._has_sent = True
        return data
