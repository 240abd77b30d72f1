"""What is read to measure: the given videos, or one like those of Kinetics, made for the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch

from video_gn.data.dataset import Sample
from video_gn.errors import DecodeError
from video_gn.lists.records import VideoRecord


def given_or_made(videos: Sequence[str], directory: str) -> list[str]:
    """Paths of the given videos; if there are none, a 340x256 video of 10 s is made in the directory."""
    if videos:
        return list(videos)
    path = Path(directory) / "made.mp4"
    write_typical_video(path)
    return [str(path)]


def repeat_video(path: Path, target: Path, *, times: int) -> None:
    """Write a video's packets several times in a row."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        length = sum(packet.duration or 0 for packet in source.demux(video=0))
        for number in range(times):
            source.seek(0)
            for packet in source.demux(video=0):
                if packet.pts is not None and packet.dts is not None:
                    packet.stream, packet.pts = stream, packet.pts + number * length
                    packet.dts += number * length
                    container.mux(packet)


def records_of(paths: Sequence[str]) -> list[VideoRecord]:
    """The paths as a list of videos, all with label 0."""
    return [VideoRecord(path, 0, source="the command line") for path in paths]


def frames_of(sample: Sample) -> torch.Tensor:
    """A sample's frames, uint8 (V, T, C, H, W); a DecodeError if its video could not be read."""
    if sample.failures or sample.frames_VTCHW is None:
        raise DecodeError(sample.failures[0].path, sample.failures[0].reason)
    return sample.frames_VTCHW


def write_typical_video(
    path: Path, *, num_frames: int = 300, width: int = 340, height: int = 256, fps: int = 30
) -> None:
    """Write an H.264 mp4 like trimmed and shrunk Kinetics files: x264's own settings, one key frame in 250.

    The picture is a panned texture with two moving textured objects and some noise, so that it takes about as
    many bits (some 500 kbit/s) as a real one. The same arguments give the same pictures.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # PyAV would set FFmpeg's old default of a key frame every 12 frames; these are x264's. Its detection of cuts is
        # off: there are none, and it would take the noise for one now and then.
        stream.codec_context.gop_size = 250
        stream.codec_context.options = {"preset": "medium", "crf": "23", "bf": "3", "sc_threshold": "0", "threads": "1"}
        for picture in _pictures(num_frames, width, height):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _pictures(num_frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    scene = _texture(rng, height + 64, width + 2 * num_frames)
    objects = [_texture(rng, height // 3, width // 5) for _ in range(2)]
    for number in range(num_frames):
        # A pan of half a pixel a frame, with the tremble of a hand.
        top = 32 + round(6 * np.sin(number / 17))
        left = number // 2 + round(3 * np.sin(number / 7) + 4)
        picture = scene[top : top + height, left : left + width].copy()
        for place, patch in enumerate(objects):
            rows, columns = patch.shape[:2]
            y = round((height - rows) * (0.5 + 0.45 * np.sin(number / (23 + 9 * place))))
            x = round((width - columns) * (0.5 + 0.45 * np.cos(number / (31 - 12 * place))))
            picture[y : y + rows, x : x + columns] = patch
        picture += rng.normal(0.0, 6.0, (height, width, 1))
        yield picture.clip(0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise at several sizes, the coarse ones stronger, as in natural pictures: float64 (height, width, 3)."""
    out = np.full((height, width, 3), 120.0)
    for size, strength in ((64, 34.0), (24, 20.0), (8, 11.0), (3, 6.0)):
        grid = rng.normal(0.0, strength, (height // size + 2, width // size + 2, 3))
        rows, columns = np.arange(height) / size, np.arange(width) / size
        y, x = rows.astype(int), columns.astype(int)
        fy, fx = (rows - y)[:, None, None], (columns - x)[None, :, None]
        upper = grid[y][:, x] * (1 - fx) + grid[y][:, x + 1] * fx
        lower = grid[y + 1][:, x] * (1 - fx) + grid[y + 1][:, x + 1] * fx
        out += upper * (1 - fy) + lower * fy
    return out
