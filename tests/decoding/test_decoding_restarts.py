"""Where decoding may begin besides at H.264's and HEVC's closed groups: right frames in any order, for many codecs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding_cases import in_order
from media import write_numbered_video

from video_gn.decoding._pyav import PyAVReader

NUM_FRAMES = 30
EVERY_12 = [0, 12, 24]
ALL = list(range(NUM_FRAMES))
X264 = "keyint=12:min-keyint=12:scenecut=0:open-gop=1:"


def x264(text: str) -> dict[str, Any]:
    return {"codec_options": {"preset": "medium", "x264-params": X264 + text}}


CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "pyramid.mp4": (x264("bframes=3:b-pyramid=normal:ref=4:b-adapt=0"), EVERY_12),
    "references.mkv": (x264("bframes=0:ref=5"), EVERY_12),
    "weights.ts": (x264("bframes=4:b-pyramid=strict:ref=4:weightp=2:slices=3"), EVERY_12),
    "interlaced.flv": (x264("bframes=2:tff=1"), EVERY_12),
    # Recovery takes some frames here: only the first one is a place to begin.
    "refresh.mp4": (x264("intra-refresh=1:bframes=0"), [0]),
    "mpeg1.mpg": ({"codec": "mpeg1video"}, EVERY_12),
    "mpeg2.mp4": ({"codec": "mpeg2video"}, EVERY_12),
    "mpeg2.mkv": ({"codec": "mpeg2video", "bframes": 0}, EVERY_12),
    "mpeg2.avi": ({"codec": "mpeg2video", "bframes": 0}, EVERY_12),
    "mpeg2.ts": ({"codec": "mpeg2video", "codec_options": {"flags": "+ildct+ilme"}}, EVERY_12),
    "mpeg4.mpg": ({"codec": "mpeg4"}, EVERY_12),
    "mpeg4.avi": ({"codec": "mpeg4"}, EVERY_12),
    # With fields, FFmpeg's decoder keeps a measure of the first B picture that it sees.
    "mpeg4_fields.mp4": ({"codec": "mpeg4", "bframes": 1, "codec_options": {"flags": "+ildct+ilme"}}, [0]),
    "mpeg4_fields.avi": ({"codec": "mpeg4", "bframes": 0, "codec_options": {"flags": "+ildct+ilme"}}, EVERY_12),
    "ffv1_0.avi": ({"codec": "ffv1", "codec_options": {"level": "0", "coder": "0"}}, EVERY_12),
    "ffv1_1.mkv": ({"codec": "ffv1", "codec_options": {"level": "1", "coder": "1", "context": "1"}}, EVERY_12),
    "ffv1_3.mkv": ({"codec": "ffv1", "codec_options": {"level": "3", "coder": "2"}}, EVERY_12),
    "ffv1_all.mkv": ({"codec": "ffv1", "gop": 1, "codec_options": {"level": "3"}}, ALL),
    "msmpeg4v2.avi": ({"codec": "msmpeg4v2"}, EVERY_12),
    "msmpeg4v3.avi": ({"codec": "msmpeg4"}, EVERY_12),
    "wmv1.asf": ({"codec": "wmv1"}, EVERY_12),
    "wmv2.asf": ({"codec": "wmv2"}, EVERY_12),
    "sorenson.flv": ({"codec": "flv"}, EVERY_12),
    "h263.avi": ({"codec": "h263", "size": (176, 144)}, EVERY_12),
    "h263p.avi": ({"codec": "h263p"}, EVERY_12),
    "dv.avi": ({"codec": "dvvideo", "size": (720, 576)}, ALL),
    "huffyuv.avi": ({"codec": "huffyuv", "pix_fmt": "yuv422p", "codec_options": {"pred": "median"}}, ALL),
    "ffvhuff.avi": ({"codec": "ffvhuff", "codec_options": {"context": "1"}}, ALL),
    "utvideo.avi": ({"codec": "utvideo"}, ALL),
    "magicyuv.avi": ({"codec": "magicyuv"}, ALL),
    "png.mov": ({"codec": "png", "pix_fmt": "rgb24"}, ALL),
    "jpeg2000.mov": ({"codec": "jpeg2000"}, ALL),
    "jpegls.avi": ({"codec": "jpegls", "pix_fmt": "rgb24"}, ALL),
    "dpx.mov": ({"codec": "dpx", "pix_fmt": "rgb24"}, ALL),
    "v210.mov": ({"codec": "v210", "pix_fmt": "yuv422p10le"}, ALL),
    "asv2.avi": ({"codec": "asv2"}, ALL),
    "prores.mov": ({"codec": "prores", "pix_fmt": "yuv422p10le"}, ALL),
    # Whether these may begin anywhere is not known.
    "flashsv.avi": ({"codec": "flashsv", "pix_fmt": "bgr24"}, [0]),
    "snow.avi": ({"codec": "snow"}, [0]),
    "lcl.avi": ({"codec": "zlib", "pix_fmt": "bgr24"}, [0]),
}


# Of their kinds others are read every day.
SLOW = (
    "interlaced.flv",
    "references.mkv",
    "mpeg2.mkv",
    "mpeg2.avi",
    "ffv1_0.avi",
    "ffv1_1.mkv",
    "msmpeg4v2.avi",
    "wmv1.asf",
    "h263.avi",
    "dv.avi",
    "ffvhuff.avi",
    "magicyuv.avi",
    "jpeg2000.mov",
    "jpegls.avi",
    "dpx.mov",
    "v210.mov",
    "asv2.avi",
    "snow.avi",
    "lcl.avi",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_frames_in_any_order_are_those_of_decoding_in_order(tmp_path: Path, name: str) -> None:
    kwargs, restarts = CASES[name]
    path = write_numbered_video(tmp_path / name, NUM_FRAMES, **kwargs)
    expected = in_order(path)
    rng = random.Random(name)
    with PyAVReader(str(path)) as reader:
        pts = reader.table.pts
        rows = np.flatnonzero(reader.table.is_restart)
        assert [int((pts < pts[row]).sum()) for row in rows] == restarts
        assert reader.info.num_frames == len(expected) == NUM_FRAMES
        for indices in (rng.sample(ALL, 12), [NUM_FRAMES - 1], [0, 14], rng.sample(ALL, 12), ALL):
            frames = reader.frames_at(indices).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))
        assert reader.doubt is None
        reader.frames_at([0])
        before = reader.num_decoded
        reader.frames_at([NUM_FRAMES - 2])
        # From the restart at or before it, and what the decoder holds back.
        last = max(index for index in restarts if index <= NUM_FRAMES - 2)
        assert reader.num_decoded - before <= NUM_FRAMES - last


def change_delay(data: bytearray, which: int) -> None:
    """Turn around the low_delay bit of one of FFmpeg's headers of an MPEG-4 layer (ISO/IEC 14496-2, 6.2.3)."""
    at = [at for at in range(len(data)) if data.startswith(b"\0\0\1\x20", at)][which]
    # random access 1, object type 8, identifier 1 and 7, aspect 4, control 1, chroma 2
    assert data[at + 5] >> 6 & 1, "no identifier"
    data[at + 7] ^= 0x80


@pytest.mark.parametrize(("bframes", "which"), [(0, 1), (0, 2), (2, 1)])
def test_mpeg4_headers_that_differ(tmp_path: Path, bframes: int, which: int) -> None:
    path = write_numbered_video(tmp_path / "joined.avi", NUM_FRAMES, codec="mpeg4", bframes=bframes)
    data = bytearray(path.read_bytes())
    change_delay(data, which)
    path.write_bytes(data)
    expected = in_order(path)
    for index in (NUM_FRAMES - 4, 13, 3):
        with PyAVReader(str(path)) as reader:
            assert np.array_equal(reader.frames_at([index])[0].numpy(), expected[index])
