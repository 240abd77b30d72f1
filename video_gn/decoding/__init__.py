"""Reading frames of a video by index.

`open_video(path)` returns a `VideoReader`: `.info`, `.frame_seconds` and `.frames_at(indices)`. The path is a file, a
member of a tar (`train-000000.tar::0001.mp4`), or a directory whose numbered pictures are the frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from os import PathLike, fsdecode
from typing import Any

from video_gn.decoding._base import VideoReader
from video_gn.decoding.frame_folders import FolderError, FramesReader
from video_gn.errors import DecodeError

__all__ = ["BACKENDS", "VideoReader", "choose_backend", "open_video"]

_logger = logging.getLogger(__name__)


def _open_pyav(path: str, *, num_threads: int, short_side_px: int | None = None) -> VideoReader:
    from video_gn.decoding._pyav import PyAVReader

    return PyAVReader(path, num_threads=num_threads, short_side_px=short_side_px)


def _open_decord(path: str, *, num_threads: int) -> VideoReader:
    from video_gn.decoding._decord import DecordReader

    return DecordReader(path, num_threads=num_threads)


def _open_torchcodec(path: str, *, num_threads: int, device: str = "cpu") -> VideoReader:
    from video_gn.decoding._torchcodec import TorchCodecReader

    return TorchCodecReader(path, num_threads=num_threads, device=device)


# name: (opener, module that it needs, package that contains the module)
BACKENDS: dict[str, tuple[Callable[..., VideoReader], str, str]] = {
    "pyav": (_open_pyav, "av", "av"),
    "decord": (_open_decord, "decord", "decord2"),
    "torchcodec": (_open_torchcodec, "torchcodec", "video-gn[torchcodec]"),
}
# The back end of "auto". PyAV gives the right frames of every file that FFmpeg reads, and is also the fastest: it
# converts only the frames asked for, skips pictures that no other picture refers to, and seeks only where that saves
# decoding. decord needs PyAV to know whether it can be trusted, so it is no fallback without PyAV.
_AUTO = "pyav"
_WITH_DEVICE = ("torchcodec",)
_WITH_SCALING = ("pyav",)
_announced: set[str] = set()


def choose_backend(backend: str = "auto", *, scales: bool = False) -> str:
    """The name of the back end that `open_video` uses; the choice of "auto" is logged once in a process.

    Data sets call this before their workers start, so that the log has one line and not one for each worker.

    Args:
        backend: "auto" or a key of `BACKENDS`.
        scales: Whether frames are to be scaled while decoding.

    Raises:
        ValueError: for an unknown back end, or one that cannot scale if `scales` is set.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(
            f"backend must be one of {['auto', *BACKENDS]}, got {backend!r}. Leave it out to have the best one chosen."
        )
    name = _AUTO if backend == "auto" else backend
    if scales and name not in _WITH_SCALING:
        raise ValueError(
            f"backend must be one of {['auto', *_WITH_SCALING]} to scale frames while decoding, got {backend!r}. "
            "Name one of these, or leave the scaling out."
        )
    if backend == "auto" and name not in _announced:
        _announced.add(name)
        _logger.info("videos are decoded by %s (backend auto)", name)
    return name


def open_video(
    path: str | PathLike[str],
    backend: str = "auto",
    *,
    num_threads: int = 1,
    device: str = "cpu",
    short_side_px: int | None = None,
) -> VideoReader:
    """Open a video for reading frames by index; use it in a `with` statement, in the process that opens it.

    Args:
        path: Local file; or, with backend="auto", a directory of numbered pictures (`img_00001.jpg`, ...).
        backend: "auto" or a key of `BACKENDS`. "auto" is PyAV for files. Each back end gives the same frames or raises;
            one asked for by name is never replaced by another.
        num_threads: Decoding threads. Data loaders decode in many workers, with one thread each.
        device: Where frames are decoded and left: "cpu", or "cuda" with backend="torchcodec".
        short_side_px: Short side that larger frames are scaled down to, even; their long side is floored to an even
            number. Smaller frames keep their size, and with None all do. For the back ends "auto" and "pyav".

    Returns:
        A reader.

    Raises:
        ValueError: for an unknown back end, a thread count below 1, an odd short side, or a device or scaling
            that the back end does not have.
        ImportError: if the back end's package, or FFmpeg's libraries that it needs, are not installed.
        DecodeError: for a file that is missing, empty, not a video, without a video stream, or without a frame that
            decodes; for a directory without numbered pictures, or with gaps in their numbers; and if a back end asked
            for by name cannot be relied on for this file, or gets a directory.
    """
    name = choose_backend(backend, scales=short_side_px is not None)
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads!r}. Use 1 inside data loader workers.")
    opener, module, package = BACKENDS[name]
    if short_side_px is not None and (short_side_px < 2 or short_side_px % 2):
        raise ValueError(f"short_side_px must be even and above 0, got {short_side_px!r}. Leave it out not to scale.")
    options: dict[str, Any] = {}
    if device != "cpu":
        if name not in _WITH_DEVICE:
            raise ValueError(
                f"device must be 'cpu' with the back end {name!r}, got {device!r}. "
                f"Only {', '.join(_WITH_DEVICE)} decodes elsewhere: name it as the backend."
            )
        options["device"] = device
    if short_side_px is not None:
        options["short_side_px"] = short_side_px
    try:
        return opener(fsdecode(path), num_threads=num_threads, **options)
    except FolderError as error:
        # The back end found out within its time limit: asking here first would cost one more system call per video.
        if backend == "auto":
            return FramesReader(fsdecode(path), short_side_px=short_side_px)
        reason = f"a directory, not a video file: only backend='auto' reads frame folders, not {backend!r}"
        raise DecodeError(path, reason) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module:
            raise
        raise ImportError(
            f"backend must be one that is installed, got {name!r}, which needs the package {package!r}. "
            f"Install it (pip install {package})."
        ) from error
