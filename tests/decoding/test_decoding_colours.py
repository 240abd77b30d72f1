"""Colours: what the ffmpeg command gives, or an error when the video is opened."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from decoding_cases import TORCHCODEC
from media import numbered_frame, write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding.raw import RawVideo
from video_gn.errors import DecodeError


@pytest.mark.parametrize("backend", ["pyav", "decord", TORCHCODEC])
def test_interlaced_pictures_are_converted_as_whole_ones(tmp_path: Path, backend: str) -> None:
    options = {"x264-params": "tff=1", "crf": "10"}
    path = write_numbered_video(tmp_path / "a.mp4", 4, codec_options=options)
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in decoded)
    plain = [av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p") for frame in decoded]
    expected = np.stack([frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in plain])
    with open_video(path, backend) as reader:
        assert np.array_equal(reader.frames_at(range(4)).numpy(), expected)
    with RawVideo(str(path)) as raw:  # what is encoded
        assert not any(frame.interlaced_frame for frame in raw.frames(0, 4))


@pytest.mark.parametrize("backend", ["pyav", "decord", TORCHCODEC])
@pytest.mark.parametrize("matrix", ["YCgCo", "bt2020c", "ICtCp"])
def test_colours_that_cannot_be_converted_are_found_when_opening(tmp_path: Path, matrix: str, backend: str) -> None:
    params = {"x264-params": f"colormatrix={matrix}"}
    path = write_numbered_video(tmp_path / "a.mp4", 2, codec_options=params)
    with pytest.raises(DecodeError, match=rf"cannot convert it to RGB \(yuv420p, colour matrix {matrix.lower()}\)"):
        open_video(path, backend)


@pytest.mark.parametrize(
    "pix_fmt", ["rgb565be", "rgb555be", "bgr565be", "bgr555be", "rgb565le", "bgr555le", "gray", "rgba"]
)
def test_packed_pixels(tmp_path: Path, pix_fmt: str) -> None:
    path = write_numbered_video(tmp_path / "a.nut", 3, codec="rawvideo", pix_fmt=pix_fmt, bframes=0)
    with open_video(path) as reader:
        frames = reader.frames_at(range(3)).numpy().astype(int)
    for i, frame in enumerate(frames):
        grey = numbered_frame(i).mean(axis=2)
        assert np.abs(frame.mean(axis=2) - grey).mean() < 12
