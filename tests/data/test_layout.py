"""Clips of one pass over a video."""

import weakref

import numpy as np
import pytest
import torch
from media import write_numbered_video

from video_gn.data.crops import TestCrops
from video_gn.data.layout import read_views, stream_clips
from video_gn.decoding import open_video


@pytest.mark.parametrize("crops", ["center", "three"])
def test_clips_of_a_stream_are_those_read_one_by_one(tmp_path, crops):
    path = write_numbered_video(tmp_path / "v.mp4", 150)
    crop = TestCrops(crops, short_side_px=24, crop_px=20)
    rng = np.random.default_rng(0)
    windows = np.arange(0, 130, 5)[:, None] + 2 * np.arange(8)
    looped = (np.array([[0], [70], [145]]) + np.arange(8)) % 150
    repeats = rng.integers(0, 150, (4, 8))
    clips = rng.permutation(np.concatenate([windows, looped, repeats]))
    with open_video(path) as reader:
        found = {
            number: torch.stack(frames, 1).permute(0, 1, 4, 2, 3)
            for number, frames in stream_clips(reader, clips, crop.apply)
        }
        assert list(clips.max(1)[list(found)]) == sorted(clips.max(1))
        assert len(found) == len(clips)
        for number, clip in found.items():
            assert torch.equal(clip, read_views(reader, clips[number : number + 1], crop.apply))


def test_few_frames_are_held(tmp_path):
    """Of windows of 16 frames that overlap, no more frames than those of one, and the 4 that are cropped at a time."""
    path = write_numbered_video(tmp_path / "v.mp4", 300)
    windows = np.arange(0, 280, 3)[:, None] + np.arange(16)
    given = []
    with open_video(path) as reader:
        for _, frames in stream_clips(reader, windows, lambda frames_THWC: frames_THWC.permute(0, 3, 1, 2)[None]):
            given = [frame for frame in given if frame() is not None] + [weakref.ref(frame) for frame in frames]
            assert len({id(frame()) for frame in given}) <= 16 + 4
            del frames
