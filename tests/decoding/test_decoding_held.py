"""decord and torchcodec over containers that seek in other ways: PyAV's frames, or refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from decoding_cases import TORCHCODEC, assert_same
from media import decode_in_order, read_numbers, write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding._decord import DecordReader
from video_gn.errors import DecodeError

NUM_FRAMES = 40
ALWAYS_READ = ("mp4", "mkv", "mov", "webm")
CONTAINERS = {
    **dict.fromkeys((*ALWAYS_READ[:3], "avi", "ts", "flv", "wmv", "mxf", "h264"), "libx264"),
    "webm": "libvpx-vp9",
    "mpg": "mpeg2video",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("held")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("backend", ["decord", TORCHCODEC])
def test_frames_are_pyavs_or_refused(folder: Path, container: str, backend: str) -> None:
    codec = CONTAINERS[container]
    for bframes in (0, 2) if codec != "libvpx-vp9" else (0,):
        for gop in (3, 30):
            path = folder / f"{bframes}_{gop}.{container}"
            if not path.exists():
                write_numbered_video(path, NUM_FRAMES, codec=codec, bframes=bframes, gop=gop)
            expected = np.stack(decode_in_order(path))
            rng = random.Random(path.name)
            requests = [[rng.randrange(len(expected)) for _ in range(8)] for _ in range(6)] + [[7], [0, 3, 35]]
            try:
                with open_video(path, backend) as reader:
                    for indices in requests:
                        frames = reader.frames_at(indices).numpy()
                        if backend == "decord":
                            assert np.array_equal(frames, expected[indices])
                        else:
                            assert_same(frames, expected[indices], "yuv420p")
            except DecodeError as error:
                if container in ALWAYS_READ or "Use backend='pyav'" not in error.reason:
                    raise


def test_an_interrupted_first_call_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 8)
    with open_video(path, "decord") as reader:
        real = DecordReader._fingerprint
        taken: list[int] = []

        def interrupted(self: DecordReader, frame: VideoFrame) -> int:
            taken.append(real(self, frame))
            if len(taken) == 3:
                raise KeyboardInterrupt
            return taken[-1]

        with monkeypatch.context() as patch:
            patch.setattr(DecordReader, "_fingerprint", interrupted)
            with pytest.raises(KeyboardInterrupt):
                reader.frames_at([2, 7])
        assert read_numbers(reader.frames_at([2, 7])) == [2, 7]


def test_decord_makes_no_room_for_frames_that_a_header_claims(folder: Path) -> None:
    path = write_numbered_video(folder / "claims.avi", 20, codec="mpeg4", bframes=0)
    data = bytearray(path.read_bytes())
    data[(at := data.find(b"strh") + 40) : at + 4] = (5_000_000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="room for the 5000000 frames that the file's header claims"):
        open_video(path, "decord")
    with open_video(path) as reader:
        assert reader.info.num_frames == 20
