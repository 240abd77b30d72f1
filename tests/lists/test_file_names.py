"""Which files of a folder are videos, and what is said of the others."""

import logging
import shutil
from pathlib import Path

import av
import pytest
from list_files import touch
from media import all_frames, numbered_frame, read_numbers, write_numbered_video
from PIL import Image

from video_gn.lists.file_names import VIDEO_EXTENSIONS
from video_gn.lists.read import find_videos, read_manifest

# Ending, FFmpeg's container, codec, pixel format.
KINDS = [
    ("rmvb", "rm", "rv20", "yuv420p"),
    ("rm", "rm", "rv10", "yuv420p"),
    ("gif", "gif", "gif", "rgb8"),
    ("mpeg4", "mp4", "mpeg4", "yuv420p"),
    ("M2V", "mpeg2video", "mpeg2video", "yuv420p"),
    ("m1v", "mpeg1video", "mpeg1video", "yuv420p"),
    ("mjpeg", "mjpeg", "mjpeg", "yuvj420p"),
    ("mj2", "mov", "jpeg2000", "yuv420p"),
    ("qt", "mov", "libx264", "yuv420p"),
    ("mk3d", "matroska", "libx264", "yuv420p"),
    ("h264", "h264", "libx264", "yuv420p"),
    ("ivf", "ivf", "libvpx", "yuv420p"),
    ("nut", "nut", "mpeg4", "yuv420p"),
    ("wtv", "wtv", "mpeg2video", "yuv420p"),
    ("ismv", "ismv", "libx264", "yuv420p"),
    ("trp", "mpegts", "libx264", "yuv420p"),
    ("vro", "mpeg", "mpeg2video", "yuv420p"),
    ("3gpp", "3gp", "libx264", "yuv420p"),
    ("ogv", "ogg", "libvpx", "yuv420p"),
]


def encode(path, container, codec, pixels):
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.qmin, stream.codec_context.qmax, stream.bit_rate = 2, 4, 3_000_000
        for number in range(9):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        out.mux(stream.encode(None))


def test_endings_of_videos_are_read(tmp_path, caplog):
    """Each is a video in a folder, and its frames are the right ones."""
    (tmp_path / "a").mkdir()
    for ending, *kind in KINDS:
        assert f".{ending.lower()}" in VIDEO_EXTENSIONS
        encode(tmp_path / f"a/{ending}.{ending}", *kind)
    records = read_manifest(tmp_path).records
    assert sorted(Path(r.path).suffix for r in records) == sorted(f".{ending}" for ending, *_ in KINDS)
    assert {r.path: read_numbers(all_frames(r.path)) for r in records} == {r.path: list(range(9)) for r in records}
    assert "left out" not in caplog.text


@pytest.fixture
def mixed(tmp_path):
    """Two videos and a frame folder of one class, among files of other kinds."""
    write_numbered_video(tmp_path / "one.mp4", 5)
    for name in ("run/a.mp4", "run/b.gif", "jump/c.rmvb"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "one.mp4", tmp_path / "videos" / name)
    touch(
        tmp_path / "videos", "run/Thumbs.db", "run/.DS_Store", "run/desktop.ini", "run/__MACOSX/._a.mp4",
        "__MACOSX/run/._a.mp4", "run/@eaDir/a.mp4/thumb.jpg", "lost+found/x.mp4", "labels.csv",
        "run/a.json", "run/b.JSON", "run/deep/c.mp4.part", "run/c.dat", "run/d.dat", "run/e.dat", "run/README",
        "run/a.jpg", "run/00001.jpg",
    )  # fmt: skip
    (tmp_path / "videos/jump/v").mkdir()
    for number in (5, 6):
        Image.fromarray(numbered_frame(number)).save(tmp_path / f"videos/jump/v/v_{number}.bmp")
    touch(tmp_path / "videos/jump/v", "flow_x_5.bmp", "notes.txt")
    return tmp_path / "videos"


COUNTS = "3 .dat, 2 .jpg, 2 .json, 1 .part, 1 without an ending"


def said(caplog):
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    head, _, counts = line.partition(" is left out: ")
    caplog.clear()
    return head, counts


def test_what_is_left_out_of_folders_is_counted_by_ending(mixed, caplog):
    manifest = read_manifest(mixed)
    assert [str(Path(r.path).relative_to(mixed)) for r in manifest.records] == [
        "jump/c.rmvb", "jump/v", "run/a.mp4", "run/b.gif"
    ]  # fmt: skip
    assert said(caplog) == (f"{mixed}: what is no video by its ending", COUNTS)
    assert len(find_videos([mixed]).records) == 4
    assert said(caplog)[1] == "3 .dat, 2 .jpg, 2 .json, 1 .csv, 1 .part, 1 without an ending"
    assert len(find_videos([f"{mixed}/*"]).records) == 5  # "lost+found" is named
    assert said(caplog)[1] == "3 .dat, 2 .jpg, 2 .json, 1 .csv, 1 .part, 1 without an ending"


def test_many_endings_end_in_a_count(tmp_path, caplog):
    touch(tmp_path / "a", "x.mp4", *(f"{n}.k{n}" for n in range(9)), "y.k8")
    read_manifest(tmp_path)
    assert said(caplog)[1] == "2 .k8, 1 .k0, 1 .k1, 1 .k2, 1 .k3, 1 .k4, 3 others"


def test_nothing_is_said_where_nothing_is_left_out(mixed, caplog):
    for path in [*mixed.rglob("*.dat"), *mixed.rglob("*.[jJ]*"), *mixed.rglob("*.part"), mixed / "run/README"]:
        path.unlink()
    assert len(read_manifest(mixed)) == 4
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
