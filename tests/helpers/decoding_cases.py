"""Generated videos of every kind, and what is expected of each; the fixture `write` makes them."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from video_gn.decoding import open_video
from video_gn.decoding._rgb import RgbConverter
from video_gn.errors import FrameCountError

TORCHCODEC = pytest.param("torchcodec", marks=pytest.mark.needs_torchcodec)
NUM_FRAMES = 60
NUM_ORDERS = int(os.environ.get("VIDEO_GN_CALL_ORDERS", "2"))  # of calls, for each file
VARIABLE = [40 * i + (i % 3) * 11 for i in range(NUM_FRAMES)]
OPEN_GOP = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=2:open-gop=1"}
HEVC = "keyint=12:min-keyint=12:bframes=3:log-level=none:pools=1:open-gop="


@dataclass(frozen=True)
class Case:
    """A file name, how it is written, and what is expected of it."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    num_hidden: int = 0  # frames that an edit list hides at the start
    restarts: tuple[int, ...] = tuple(range(0, NUM_FRAMES, 12))  # indices where decoding may begin
    doubt: str | None = None
    decord: bool = True  # whether decord can be relied on


CASES = [
    Case("b.mp4"),
    Case("b.mkv"),
    Case("no_b.mp4", {"bframes": 0}),
    Case("many_b.mp4", {"bframes": 5}),
    Case("gop_1.mp4", {"gop": 1, "bframes": 0}, restarts=tuple(range(NUM_FRAMES))),
    Case("gop_3.mp4", {"gop": 3}, restarts=tuple(range(0, NUM_FRAMES, 3))),
    Case("long_gop.mp4", {"gop": 250}, restarts=(0,)),
    Case("open_gop.mp4", {"codec_options": OPEN_GOP}, decord=False),
    Case("open_gop.mkv", {"codec_options": OPEN_GOP}, decord=False),
    Case(
        "refresh.mp4",
        {"codec_options": {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}},
        restarts=(0,),
        decord=False,
    ),
    Case("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    Case("b.ts", decord=False),
    Case("b.flv"),
    Case("raw.h264", restarts=(), doubt="frames of it have no time", decord=False),
    Case("h264.avi", decord=False),
    Case("mpeg4_b.avi", {"codec": "mpeg4"}, restarts=(0, 12, 24, 36, 48, 59), decord=False),
    Case("mpeg4.avi", {"codec": "mpeg4", "bframes": 0}),
    Case("mpeg4.mp4", {"codec": "mpeg4", "bframes": 0}),
    Case("mpeg4_b.mp4", {"codec": "mpeg4"}, restarts=(0, 12, 24, 36, 48, 59), decord=False),
    Case("mpeg2.ts", {"codec": "mpeg2video"}, restarts=(0, 12, 24, 36, 48, 59), decord=False),
    Case("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, restarts=tuple(range(NUM_FRAMES)), decord=False),
    Case("vp8.webm", {"codec": "libvpx"}),
    Case("vp9.webm", {"codec": "libvpx-vp9"}),
    Case("vp9_odd_size.webm", {"codec": "libvpx-vp9", "size": (63, 47)}),
    Case("av1.mp4", {"codec": "libsvtav1", "size": (64, 64)}),
    Case("hevc.mp4", {"codec": "libx265", "codec_options": {"x265-params": HEVC + "0"}}, decord=False),
    Case("hevc_open_gop.mp4", {"codec": "libx265", "codec_options": {"x265-params": HEVC + "1"}}, decord=False),
    Case("variable.mp4", {"pts_ms": VARIABLE}),
    Case("variable.mkv", {"pts_ms": VARIABLE}),
    Case("start.mp4", {"start_ms": 5000}),
    Case("start.mkv", {"start_ms": 3_600_000}),
    Case(
        "edit_list.mp4",
        {"start_ms": -400, "container_options": {"avoid_negative_ts": "disabled"}},
        num_hidden=10,
        restarts=(),
        doubt="an edit list hides frames of it",
        decord=False,
    ),
    Case("turned_90.mp4", {"rotation": 90}),
    Case("turned_180.mp4", {"rotation": 180}),
    Case("turned_270.mov", {"rotation": 270}),
    Case("ten_bits.mp4", {"pix_fmt": "yuv420p10le"}, decord=False),
    Case("444.mp4", {"pix_fmt": "yuv444p"}, decord=False),
    Case("a:b, c%d é.mp4"),
]


def in_order(path: Path) -> list[np.ndarray]:
    """All frames, decoded in order, and converted as the reader does, interlaced ones too."""
    frames: list[np.ndarray] = []
    converter: RgbConverter | None = None
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            converter = converter or RgbConverter(frame, str(path))
            frames.append(np.empty((*converter.size, 3), dtype=np.uint8))
            converter.write(frame, frames[-1])
    return frames


def assert_same(frames: np.ndarray, expected: np.ndarray, pix_fmt: str) -> None:
    """What PyAV gives, as near as another version of FFmpeg comes.

    8 bits: some inverse transforms (MPEG-4's) differ by 2 levels. More than 8: the conversion is another one.
    """
    assert frames.shape == expected.shape
    difference = np.abs(frames.astype(np.int16) - expected.astype(np.int16))
    if "10le" in pix_fmt:
        assert difference.mean() <= 1
    else:
        assert difference.max() <= 2


def check_orders(path: Path, expected: list[np.ndarray], *, num_orders: int = NUM_ORDERS, threads: int = 1) -> int:
    """Read in random orders; returns the number of frames that the file promises when it is opened."""
    promised = 0
    for seed in range(num_orders + 1):
        rng = random.Random(f"{path.name} {seed}")
        with open_video(path, num_threads=threads) as reader:
            promised = reader.info.num_frames
            is_corrected = False
            for call in range(6 if seed else 1):
                while True:
                    num_frames = reader.info.num_frames
                    drawn = [rng.choice([rng.randrange(num_frames), num_frames - 1]) for _ in range(rng.randint(1, 4))]
                    indices = drawn if seed else list(range(num_frames))
                    try:
                        frames = reader.frames_at(indices).numpy()
                        break
                    except FrameCountError:
                        assert not is_corrected
                        is_corrected = True
                assert seed or num_frames == len(expected)
                for frame, i in zip(frames, indices, strict=True):
                    assert np.array_equal(frame, expected[i]), f"frame {i} in call {call} of order {seed}: {drawn}"
            assert len(reader.frame_seconds) == reader.info.num_frames and (np.diff(reader.frame_seconds) > 0).all()
    return promised
