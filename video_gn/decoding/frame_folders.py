"""Frame folders: directories whose numbered pictures are the frames of one video.

A file counts as a frame by its name: `img_00001.jpg`, `image_00001.png`, `frame_000001.jpeg`, `frame000001.webp`,
`00001.jpg`; any number of zeros, either case. Where no file has such a name, others count: `rgb_00001.jpg`,
`77_000001.jpg`, in a folder VIDEO also `VIDEO_00001.jpg` or `VIDEO-frame_1.jpg`, and the endings bmp and tif. Other
files are ignored, such as the optical flow (`flow_x_00001.jpg`) that the same tools write beside the frames. Numbers
begin anywhere and have no gaps.

Pictures are decoded whole, without JPEG's reduced decoding, so frames are the pictures' own pixels. Grey and palette
pictures become RGB; transparency is dropped. A rotation in the EXIF data is not applied: tools that extract frames
from videos rotate the pixels and write no such tag. Damage that leaves a JPEG decodable goes unnoticed, since libjpeg
patches it without a word.

Source: mmaction2 reads `img_{:05}.jpg` from 1 on (its `RawframeDataset`); `image_`, `frame_` and bare numbers are
what other extractions of UCF-101, EPIC-KITCHENS and Something-Something V2 come with, and the video's id those of AVA
and Charades.
"""

# os.path, not pathlib: this runs for each of 240,000 folders.
# ruff: noqa: PTH100, PTH112, PTH116, PTH118, PTH119, PTH208

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from video_gn.decoding._base import VideoReader, check_indices, check_picture, empty_frames, group_repeats, scaled_size
from video_gn.errors import DecodeError

if TYPE_CHECKING:  # lists use this module too, and must not wait for torch
    import torch
    from PIL import Image

# Frames per second, which pictures do not store: what mmaction2 takes for raw frames (its `AVADataset`, fps=30), and
# near the rate of most videos of Kinetics.
FRAMES_FPS = 30.0
_NAME = re.compile(r"((?:(?:img|image|frame)[_-]?)?)([0-9]+)\.(?:jpeg|jpg|png|webp)", re.IGNORECASE)
# Names that count where no file has one of those.
_MORE_NAMES = re.compile(
    r"((?:[0-9]+[_-])?(?:(?:img|image|frame|rgb)[_-]?)?)([0-9]+)\.(?:bmp|jpe?g|png|tiff?|webp)", re.IGNORECASE
)
_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
# 16 bits and more for a pixel: Pillow would clip them to 8.
_DEEP_MODES = ("I", "F")
NAMES_IN_WORDS = "img_00001.jpg, frame_000001.png, 00001.jpg, FOLDER_00001.jpg, ..."
NO_FRAMES = f"a directory, not a video file, and without numbered pictures ({NAMES_IN_WORDS})"


class FolderError(DecodeError):
    """A directory where a video file was expected: it may be a frame folder."""

    def __init__(self, path: str, reason: str = "a directory, not a video file") -> None:
        super().__init__(path, reason)


def is_frame(name: str, folder: str = "") -> bool:
    """Whether a file's name is a numbered picture's; `folder` is the name of its folder."""
    return (_NAME.fullmatch(name) or _MORE_NAMES.fullmatch(_without_id(name, folder))) is not None


def _without_id(name: str, folder: str) -> str:
    """`VIDEO_00001.jpg` -> `00001.jpg` in a folder VIDEO."""
    begins_so = folder and name.lower().startswith((f"{folder}_".lower(), f"{folder}-".lower()))
    return name[len(folder) + 1 :] if begins_so and not folder.lower().startswith("flow") else name


def frame_names(path: str, names: Sequence[str]) -> list[str]:
    """The numbered pictures among the names of a directory's entries, in order; its path is for messages.

    Raises:
        DecodeError: for no picture, pictures of two series, a repeated number, or a missing one.
    """
    folder = folder_name(path)
    found = [(match, name) for name in sorted(names) if (match := _NAME.fullmatch(name))] or [
        (match, name) for name in sorted(names) if (match := _MORE_NAMES.fullmatch(_without_id(name, folder)))
    ]
    series: dict[str, str] = {}
    by_number: dict[int, str] = {}
    for match, name in found:
        series.setdefault(match[1].lower(), name)
        if len(series) > 1:
            one, other = series.values()
            raise DecodeError(path, f"it has pictures of two series ({one} and {other}); keep one of them there")
        other = by_number.setdefault(int(match[2]), name)
        if other != name:
            raise DecodeError(path, f"it has picture {int(match[2])} twice ({other} and {name})")
    if not by_number:
        raise DecodeError(path, NO_FRAMES)
    numbers = sorted(by_number)
    for number, there in enumerate(numbers, numbers[0]):
        if number != there:
            raise DecodeError(
                path, f"picture {number} is missing: {by_number[there]} is the next of its {len(numbers)} pictures"
            )
    return [by_number[number] for number in numbers]


def folder_name(path: str | os.PathLike[str]) -> str:
    """A folder's own name, also for "." and paths with a slash at the end."""
    return os.path.basename(os.path.abspath(path))


def list_frames(path: str) -> list[str]:
    """Names of a frame folder's pictures, in order; lists the directory once.

    Raises:
        DecodeError: see `frame_names`; also for a directory that cannot be listed.
    """
    try:
        names = os.listdir(path)
    except OSError as error:
        raise DecodeError(path, f"the directory cannot be listed ({error.strerror})") from error
    return frame_names(path, names)


def folder_state(path: str) -> tuple[int, int]:
    """Total bytes of a directory's numbered pictures, and the latest change (ns) among them and the directory.

    Raises:
        OSError: if it cannot be listed.
    """
    size, mtime, folder = 0, os.stat(path).st_mtime_ns, folder_name(path)
    with os.scandir(path) as entries:
        for entry in entries:
            if is_frame(entry.name, folder):
                status = entry.stat()
                size, mtime = size + status.st_size, max(mtime, status.st_mtime_ns)
    return size, mtime


class Folders:
    """Tells which paths of a list are directories: lists each parent once instead of asking for each path.

    Args:
        base: Directory that relative paths start from.
    """

    def __init__(self, base: str | Path) -> None:
        self.base = os.fspath(base)
        self._below: dict[str, frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        if not name or "\0" in name:
            return False
        path = os.path.join(self.base, name.rstrip("/") or "/")
        parent, last = os.path.split(path)
        if last in ("", os.curdir, os.pardir):
            return os.path.isdir(path)
        if parent not in self._below:
            try:
                with os.scandir(parent or os.curdir) as entries:
                    self._below[parent] = frozenset(entry.name for entry in entries if entry.is_dir())
            except OSError:  # no such directory, or one that may not be read: its entries cannot be opened either
                self._below[parent] = frozenset()
        return last in self._below[parent]

    def readings(self, name: str, separator: str | None) -> list[str]:
        """The directories that a line's text before the label may name: all of it, or the part before a whole number.

        mmaction2's lists of frame folders have lines `folder num_frames label`. The pictures are counted in any case.

        Returns:
            None, one, or both of these, without a slash at the end.
        """
        texts = (name, without_count(name, separator))
        return [text.rstrip("/") for text in texts if text is not None and text in self]


def without_count(name: str, separator: str | None) -> str | None:
    """`folder 163` -> `folder`; None for a text that does not end in a whole number."""
    if separator is None:
        return None
    shorter, _, count = name.rpartition(separator)
    return shorter.strip() if shorter.strip() and count.strip().isascii() and count.strip().isdecimal() else None


class FramesReader(VideoReader):
    """Reads frames of a frame folder. See `video_gn.decoding.VideoReader`.

    Opening lists the directory once and reads the head of its first picture.

    Args:
        path: Local directory.
        short_side_px: Size that a longer short side is scaled down to, bilinear with antialiasing; None scales nothing.

    Raises:
        DecodeError: for a directory without numbered pictures, with gaps in their numbers, or whose first picture
            cannot be read.
    """

    def __init__(self, path: str, *, short_side_px: int | None = None) -> None:
        super().__init__(path)
        self._names = list_frames(path)
        with self._open(self._names[0]) as picture:
            self._size = picture.size
        check_picture(path, *self._size, name=f"the picture {self._names[0]}")
        height, width = scaled_size(self._size[1], self._size[0], short_side_px)
        self._describe_frames(len(self._names), FRAMES_FPS, height, width)

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Decode frames; see `VideoReader.frames_at`.

        Raises:
            DecodeError: for a picture that is damaged or of another size than the first one; it names the picture.
        """
        import torch

        self._check_usable()
        checked = check_indices(indices, num_frames=self._info.num_frames, path=self.path)
        wanted, places = group_repeats(checked)
        out = empty_frames(self.path, len(checked), self._info.height, self._info.width)
        for index, where in zip(wanted.tolist(), places, strict=True):
            out[where[0]] = self._decode(self._names[index])
            for repeat in where[1:]:
                out[repeat] = out[where[0]]
        return torch.from_numpy(out)

    def _open(self, name: str) -> Image.Image:
        from PIL import Image

        with self._naming(name):
            return Image.open(Path(self.path) / name, formats=_FORMATS)

    def _decode(self, name: str) -> np.ndarray:
        """uint8 (H, W, 3)."""
        from PIL import Image

        with self._open(name) as picture:
            if picture.size != self._size:
                raise DecodeError(
                    self.path,
                    f"its pictures differ in size: {self._names[0]} is {_in_words(self._size)}, {name} is "
                    f"{_in_words(picture.size)}",
                )
            if picture.mode.startswith(_DEEP_MODES):
                raise DecodeError(self.path, f"{name} must have 8 bits for a color, got Pillow's mode {picture.mode}")
            picture.info.pop("transparency", None)  # which would only make Pillow warn
            with self._naming(name):
                rgb = picture.convert("RGB")
        size = (self._info.width, self._info.height)
        return np.asarray(rgb if size == rgb.size else rgb.resize(size, Image.Resampling.BILINEAR))

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Turn what Pillow raises for a damaged picture into an error that names it."""
        from PIL import Image

        damage = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
        try:
            yield
        except damage as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, Image.UnidentifiedImageError):
                reason = "it is no BMP, JPEG, PNG, TIFF or WebP"
            raise DecodeError(self.path, f"the picture {name} cannot be read ({reason})") from error


def _in_words(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
