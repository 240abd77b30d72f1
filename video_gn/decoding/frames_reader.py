"""Frame folders: a directory of numbered pictures, read as the video that they were taken from.

Which pictures count, and how they are numbered, says `video_gn.decoding.frame_folders`. Each picture is decoded
whole, and once in a call: no reduced decoding of JPEGs, so that frames are the pictures' own pixels. Pictures in
grey or with a palette become RGB; transparency is dropped. A rotation in a picture's EXIF data is not applied: what
extracts frames from videos turns them itself and writes none.

What stays unnoticed: damage that leaves a JPEG decodable, which libjpeg patches without a word.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from video_gn.clips import VideoInfo
from video_gn.decoding._base import ReaderBase, check_indices, group_repeats, scaled_size
from video_gn.decoding.frame_folders import list_frames
from video_gn.errors import DecodeError

# Frames per second, which pictures do not tell: what mmaction2 takes for raw frames (its `AVADataset`, fps=30), and
# near the rate of most videos of Kinetics.
FRAMES_FPS = 30.0
_FORMATS = ("JPEG", "PNG", "WEBP")
# What Pillow raises for a damaged picture, beside OSError.
_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# 16 bits and more for a pixel: Pillow would clip them to 8.
_DEEP_MODES = ("I", "F")


class FramesReader(ReaderBase):
    """Reads frames of a frame folder. See `video_gn.decoding.VideoReader`.

    Opening lists the directory once and reads the head of its first picture.

    Args:
        path: a local directory.
        short_side_px: what a longer short side is scaled down to, bilinear with antialiasing; None scales nothing.

    Raises:
        DecodeError: for a directory without numbered pictures, with gaps in their numbers, or whose first picture
            cannot be read.
    """

    def __init__(self, path: str, *, short_side_px: int | None = None) -> None:
        super().__init__(path)
        self._names = list_frames(path)
        with self._open(self._names[0]) as picture:
            self._size = picture.size
        height, width = scaled_size(self._size[1], self._size[0], short_side_px)
        self._seconds = np.arange(len(self._names)) / FRAMES_FPS
        self._seconds.flags.writeable = False
        self._info = VideoInfo(
            path=path,
            num_frames=len(self._names),
            fps=FRAMES_FPS,
            width=width,
            height=height,
            rotation_degrees=0,
            codec="frames",
            duration_seconds=len(self._names) / FRAMES_FPS,
        )

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Decode frames; see `VideoReader.frames_at`.

        Raises:
            DecodeError: for a picture that is damaged or of another size than the first one; it names the picture.
        """
        self._check_usable()
        checked = check_indices(indices, num_frames=self._info.num_frames, path=self.path)
        wanted, places = group_repeats(checked)
        out = np.empty((len(checked), self._info.height, self._info.width, 3), dtype=np.uint8)
        for index, where in zip(wanted.tolist(), places, strict=True):
            out[where[0]] = self._decode(self._names[index])
            for repeat in where[1:]:
                out[repeat] = out[where[0]]
        return torch.from_numpy(out)

    def _open(self, name: str) -> Image.Image:
        try:
            return Image.open(Path(self.path) / name, formats=_FORMATS)
        except _ERRORS as error:
            raise self._damaged(name, error) from error

    def _decode(self, name: str) -> np.ndarray:
        """uint8 (H, W, 3)."""
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
            try:
                rgb = picture.convert("RGB")
            except _ERRORS as error:
                raise self._damaged(name, error) from error
        size = (self._info.width, self._info.height)
        return np.asarray(rgb if size == rgb.size else rgb.resize(size, Image.Resampling.BILINEAR))

    def _damaged(self, name: str, error: Exception) -> DecodeError:
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is no JPEG, PNG or WebP"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return DecodeError(self.path, f"the picture {name} cannot be read ({reason})")


def _in_words(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
