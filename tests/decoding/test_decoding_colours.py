"""Colours: what the ffmpeg command gives, or an error when the video is opened."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from decoding_cases import TORCHCODEC
from media import write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding.raw import RawVideo


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
