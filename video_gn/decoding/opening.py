"""Opens a video with PyAV, within a time limit.

No file may block a worker for ever. VIDEO_GN_DECODE_TIMEOUT_SECONDS (60) limits each of these:

- looking at the file, opening it and reading its first bytes, in a thread that is abandoned in time. A stale mount
  shows here: each such file costs the wait once, and a thread that sleeps on.
- FFmpeg's opening, and its reading of each packet, through its interrupt callback.
- packets without content, one after the other.

What cannot be limited: FFmpeg asks its callback before each system call, so one read of a mount that dies between
two packets waits in the kernel as long as the kernel allows (mount NFS with `soft`), as does PyAV's seeking.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import threading
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from video_gn.decoding._base import MAX_PIXELS, check_picture
from video_gn.decoding.frame_folders import FolderError
from video_gn.decoding.tar_members import PROTOCOLS, is_member, locate, member_url, split_path
from video_gn.errors import ConfigError, DecodeError

TIMEOUT_VARIABLE = "VIDEO_GN_DECODE_TIMEOUT_SECONDS"
# Generous: a network file system that is merely busy answers within seconds.
_TIMEOUT_SECONDS = 60.0
# Read by the first look at a file.
_HEAD_BYTES = 4096
# Formats that name other files or hosts, run scripts, or open files beside their own. FFmpeg recognizes a format by its
# content, so a playlist may have a video's name; and a pipe that it names would block for ever.
_OPENS_OTHERS = frozenset(
    {"avisynth", "concat", "dash", "hls", "imf", "mlv", "rtsp", "sdp", "vapoursynth", "vobsub", "webm_dash_manifest"}
)
_HEAD_OF_A_LIST = re.compile(rb"ffconcat |#EXTM3U|v=0\s|MLVI|# VobSub|\s*(<\?xml[^>]*>\s*)?<MPD[\s>]")
OPTIONS = {
    "protocol_whitelist": PROTOCOLS,
    "format_whitelist": ",".join(sorted(av.formats_available - _OPENS_OTHERS)),  # checked before a header is read
    "max_pixels": str(MAX_PIXELS),
    "pattern_type": "none",  # a picture called `a%03d.jpg` is that file
}


def open_container(path: str) -> InputContainer:
    """Open a file, or a member of a tar.

    Raises:
        ConfigError: see `timeout_seconds`.
        DecodeError: for a file that is missing, empty, not a video, names other files as playlists do, or does not
            answer in time.
        FolderError: for a directory.
    """
    limit = timeout_seconds()
    _check_within(path, limit)
    # "file:" keeps FFmpeg from taking "a:b.mp4" for a protocol.
    url = member_url(path) if is_member(path) else f"file:{path}"
    try:
        return av.open(url, mode="r", options=OPTIONS, metadata_errors="ignore", timeout=(limit, limit))
    except av.error.ExitError as error:
        raise late(path, limit, "while opening it") from error
    except av.error.FFmpegError as error:
        if _HEAD_OF_A_LIST.match(_read_head(path)):
            raise DecodeError(
                path,
                "not a video, but a playlist or the like: the files that it names are not opened. Make one video of "
                "them, as by `ffmpeg -i LIST VIDEO.mp4`",
            ) from error
        raise DecodeError(path, f"not a video that FFmpeg can read ({describe(error)})") from error


def open_stream(path: str, *, num_threads: int = 1) -> tuple[InputContainer, VideoStream]:
    """Open a file as `open_container` does, and choose its first video stream that is not a cover picture.

    Raises:
        ConfigError, DecodeError, FolderError: as `open_container`; a DecodeError also for a file that holds no video or
            too large pictures.
    """
    container = open_container(path)
    try:
        return container, choose_stream(path, container, num_threads=num_threads)
    except BaseException:
        container.close()
        raise


def file_state(path: str) -> tuple[int, int, int] | None:
    """What changes with a file, or with the tar of a member; None for one that is not there."""
    try:
        status = os.stat(split_path(path)[0] if is_member(path) else path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def timeout_seconds(unset: float = _TIMEOUT_SECONDS) -> float:
    """How long to wait for data, from VIDEO_GN_DECODE_TIMEOUT_SECONDS; data loader workers inherit it.

    Args:
        unset: What to return if it is not set.

    Raises:
        ConfigError: if it is set to anything but a number of seconds above 0.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    if not text:
        return unset
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ConfigError(
            f"{TIMEOUT_VARIABLE} must be a number of seconds above 0, got {text!r}. Leave it unset for {unset:g}."
        )
    return seconds


def limit_of(container: InputContainer) -> float:
    """Seconds that reading an open file's next packet may take."""
    return math.inf if container.read_timeout is None else float(container.read_timeout)


def late(path: str, limit: float, when: str) -> DecodeError:
    """The error for a file that does not answer in time."""
    return DecodeError(
        path,
        f"no data for {limit:g} seconds {when}. Look at the disk or mount it lies on, or raise {TIMEOUT_VARIABLE}",
    )


def _check_within(path: str, limit: float) -> None:
    """`_check_file` in a thread, the only way to leave a system call that does not return."""
    errors: list[DecodeError] = []

    def work() -> None:
        try:
            _check_file(path)
        except DecodeError as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="video_gn: first look at a file", daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        raise late(path, limit, "at the first look at it")
    if errors:
        raise errors[0]


def _check_file(path: str) -> None:
    if is_member(path):
        member_url(path)  # reads the shard's index, and the member's header
        return
    try:
        status = Path(path).stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise DecodeError(path, "the file is missing") from error
        raise DecodeError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DecodeError(path, f"cannot be read ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise FolderError(path)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "a pipe, device or socket, not a video file")
    if status.st_size == 0:
        raise DecodeError(path, "the file is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise DecodeError(path, "cannot be read (Permission denied)")
    _read_head(path)


def _read_head(path: str) -> bytes:
    """The first bytes of a file or member."""
    name, start = locate(path)[:2] if is_member(path) else (path, 0)
    try:
        with Path(name).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), _HEAD_BYTES, start)
    except OSError as error:
        raise DecodeError(path, f"cannot be read ({error.strerror})") from error


def video_streams(container: InputContainer) -> list[VideoStream]:
    """Video streams that are no cover pictures."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def choose_stream(path: str, container: InputContainer, *, num_threads: int = 1) -> VideoStream:
    """The first video stream that is not a cover picture, ready to be decoded.

    Raises:
        DecodeError: if there is none, or its pictures are too large.
    """
    streams = video_streams(container)
    if not streams:
        has = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise DecodeError(path, f"no video stream in it (it has: {has})")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise DecodeError(path, "FFmpeg has no decoder for its video stream")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # the demuxer then skips their bytes
    check_picture(path, context.width, context.height)
    context.options = {"max_pixels": str(MAX_PIXELS)}  # the pictures may be larger than the container says
    context.thread_count = num_threads
    context.thread_type = "AUTO" if num_threads > 1 else "NONE"
    return stream


def describe(error: av.error.FFmpegError) -> str:
    """FFmpeg's own words, without the path and number."""
    return error.strerror or type(error).__name__
