"""The package's own errors: each names the file, line or key it is about and says what to do."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video_gn.weights.report import LoadReport


class VideoGNError(Exception):
    """Base of every error that is about a file or a run, not about a caller's mistake."""


class DecodeError(VideoGNError):
    """A video cannot be opened or decoded.

    Args:
        path: the video's path.
        reason: one line, without the path.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(fspath(path), reason)
        self.path = fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FrameCountError(DecodeError):
    """Fewer frames decode than the packets promised; the reader has corrected its count.

    The caller draws its indices again from `num_frames`, once.

    Args:
        path: the video's path.
        num_frames: how many frames really decode, at least 1.
        promised: how many the packets promised.
    """

    def __init__(self, path: str | PathLike[str], num_frames: int, promised: int) -> None:
        super().__init__(path, f"only {num_frames} of {promised} frames decode")
        self.num_frames = num_frames
        self.promised = promised

    def __reduce__(self) -> tuple[type[FrameCountError], tuple[str, int, int]]:
        return type(self), (self.path, self.num_frames, self.promised)


class ManifestError(VideoGNError):
    """A list of videos cannot be read or does not fit; the message names file and line."""


class CheckpointError(VideoGNError):
    """A checkpoint cannot be read or does not fit; the message names file and key.

    Args:
        message: file, key, and what to do.
        report: of `video_gn.weights.load_into`, what it would have done with every tensor; None elsewhere.
    """

    def __init__(self, message: str, *, report: LoadReport | None = None) -> None:
        super().__init__(message)
        self.report = report


class ConfigError(VideoGNError):
    """A setting does not fit, by itself or together with another; the message names it."""


class RunError(VideoGNError):
    """A run cannot start or go on; the message names the setting or directory."""


class RefusedError(RunError):
    """A run cannot start, and another start of the same would not help."""


class DiskFullError(RunError):
    """A file could not be written for want of room; the message names it, what is free, and what to do."""


class UnwritableError(RefusedError):
    """A file could not be written because its directory is read-only, forbidden or no directory."""


class StoppedError(VideoGNError):
    """A signal ended a run; the message says what the run goes on from.

    Args:
        message: for the user.
        status: the process's exit status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
