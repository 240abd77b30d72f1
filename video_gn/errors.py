"""The package's errors: each names the file, line or key in question and says what to do."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video_gn.weights.report import LoadReport


class VideoGNError(Exception):
    """Base of all errors about a file or a run; a caller's mistake is a ValueError or TypeError."""


class DecodeError(VideoGNError):
    """A video cannot be opened or decoded.

    Args:
        path: Path of the video.
        reason: One line, without the path.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(fspath(path), reason)
        self.path = fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FrameCountError(DecodeError):
    """Fewer frames decode than the packets promised. The reader has corrected its count.

    The caller draws its indices again from `num_frames`, once.

    Args:
        path: Path of the video.
        num_frames: Number of frames that decode, at least 1.
        promised: Number of frames that the packets promised.
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
        message: File, key, and what to do.
        report: From `video_gn.weights.load_into`: what it would have done with every tensor. None elsewhere.
    """

    def __init__(self, message: str, *, report: LoadReport | None = None) -> None:
        super().__init__(message)
        self.report = report


class ConfigError(VideoGNError):
    """A setting is wrong, alone or together with another; the message names it."""


class SettingError(ConfigError, ValueError):
    """An argument of a function does not fit. On the command line it is an option: a line, not a traceback."""


class RunError(VideoGNError):
    """A run cannot start or continue; the message names the setting or directory."""


class RefusedError(RunError):
    """A run cannot start, and starting it again would not help."""


class DiskFullError(RunError):
    """The disk is full; the message names the file, what is free, and what to do."""


class UnwritableError(RefusedError):
    """A file cannot be written: its directory is read-only, forbidden or no directory."""


class StoppedError(VideoGNError):
    """A signal ended a run; the message says from where it can be resumed.

    Args:
        message: Text for the user.
        status: Exit status of the process.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
