"""The torchcodec back end (the extra `video-gn[torchcodec]`), compared with PyAV's reading.

torchcodec finds frames by the times of the packets and begins at key frames. It is wrong, or gives up, if packets hold
two pictures or none, if an edit list hides frames, or if key frames cannot be decoded by themselves; it patches
damaged pictures silently. Files where that matters are refused here, and each frame's own time is compared with the
packet table, so that its frames are PyAV's frames. It decodes with the system's FFmpeg, which may be of another
version: 8-bit pixels may differ by two levels from PyAV's. (In odd sizes of MPEG-1, 2 and 4 by five: refused.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from video_gn.decoding._held import HeldReader
from video_gn.decoding.libraries import import_torchcodec
from video_gn.decoding.opening import open_stream
from video_gn.decoding.tar_members import is_member, member_url

# Codecs whose decoding is defined to the bit: another version of FFmpeg gives the same pixels.
_EXACT = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "ffv1"})
# What its C++ side raises; UnicodeError for paths that are no text.
_ERRORS = (RuntimeError, ValueError, IndexError, UnicodeError)


class TorchCodecReader(HeldReader):
    """Reads frames of a video with torchcodec. See `video_gn.decoding.VideoReader` and `open_video`.

    A GPU converts to RGB in its own way: its colours are near those of the CPU, not equal to them. `num_threads` has
    no effect there.

    Raises:
        DecodeError: for a file that cannot be opened, or that torchcodec would read wrongly, or not on the device.
        ImportError: if torchcodec, or FFmpeg's shared libraries, are not installed.
    """

    NAME = "torchcodec"
    # Seen: equal to the bit in 8 bits. In 10 it ignores where H.264 and HEVC place chroma, as the ffmpeg command does:
    # 1.6 levels apart in the mean in FFmpeg's testsrc2.
    SAME_PIXELS = frozenset(
        {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv420p10le", "yuv444p10le"}
    )

    def __init__(self, path: str, *, num_threads: int = 1, device: str = "cpu") -> None:
        super().__init__(path, import_torchcodec(), num_threads=num_threads)
        if (self._info.width % 2 or self._info.height % 2) and self._info.codec not in _EXACT:
            # Converting odd sizes to RGB enlarges what the decoders differ by.
            self._refuse(f"it gives other colours in odd sizes of {self._info.codec}")
        self._time_base = float(self._table.time_base)
        self._times = np.sort(self._table.pts[self._table.is_shown]) * self._time_base
        try:
            self._reader = self._library.VideoDecoder(
                # "file:" keeps FFmpeg from taking "a:b.mp4" for a protocol.
                member_url(path) if is_member(path) else f"file:{Path(path).absolute()}",
                stream_index=self._find_stream(),
                dimension_order="NHWC",
                num_ffmpeg_threads=num_threads,
                device=device,
                seek_mode="exact",
            )
            num_frames = len(self._reader)
        except _ERRORS as error:
            self._refuse(f"it cannot open the file ({_first_line(error)})", error)
        self._refuse_count(num_frames)
        # Counterclockwise, rounded to quarters, from the header; PyAV takes the first frame's.
        turn = round(-(self._reader.metadata.rotation or 0)) % 360
        if turn != self._info.rotation_degrees:
            self._refuse(f"it rotates frames by {turn} degrees where {self._info.rotation_degrees} are right")
        if device != "cpu" and self._reader.cpu_fallback:
            self._refuse(f"{device} cannot decode it ({self._reader.cpu_fallback})")

    def _get(self, wanted: np.ndarray) -> torch.Tensor:
        """On the reader's device."""
        try:
            batch = self._reader.get_frames_at(wanted.tolist())
        except _ERRORS as error:
            self._refuse(f"it fails ({_first_line(error)})", error)
        frames: torch.Tensor = batch.data
        self._refuse_shape(frames, len(wanted))
        late = np.abs(batch.pts_seconds.cpu().numpy() - self._times[wanted])
        self._refuse_wrong(wanted, late < self._time_base / 2)
        return frames

    def _find_stream(self) -> int:
        """The stream that PyAV reads; torchcodec's own choice is the largest."""
        container, stream = open_stream(self.path)
        index = int(stream.index)
        container.close()
        return index


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
