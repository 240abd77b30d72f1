"""What a scan finds out about one file."""

import csv
import io
import tarfile
from pathlib import Path

import pytest
from media import write_numbered_video
from PIL import Image

from video_gn.decoding import open_video
from video_gn.errors import DecodeError
from video_gn.lists.read import find_videos
from video_gn.lists.scan_columns import FileFacts
from video_gn.prepare.probe import probe
from video_gn.prepare.scan import scan


@pytest.mark.needs_real_videos
def test_real_files_decoded_whole(real_videos, tmp_path):
    """ffprobe's word on 38 files: what decodes, codec and rate."""
    with (real_videos / "files.csv").open(newline="", encoding="utf-8") as file:
        oracle = {row["path"]: row for row in csv.DictReader(file)}
    summary = scan([real_videos / "clips", real_videos / "odd"], tmp_path / "out.csv", full=True, num_workers=2)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    rows = {str(Path(row["path"]).resolve().relative_to(real_videos.resolve())): row for row in found}
    assert set(rows) == set(oracle) and len(rows) == 38
    for name, want in oracle.items():
        row = rows[name]
        assert row["num_frames"] == want["decoded_frames"], name
        assert row["codec"] == want["codec"] and bool(row["error"]) == (not want["codec"]), name
        # An edit list of sample_edit_list hides frames, which ffprobe's average leaves out of account.
        if want["fps"] and name != "odd/sample_edit_list.mp4":
            assert float(row["fps"]) == pytest.approx(float(want["fps"]), rel=1e-4), name
        assert int(row["size_bytes"]) == (real_videos / name).stat().st_size
    assert summary.readable == 34 and summary.missing == 0 and sum(summary.broken.values()) == 4
    assert rows["odd/zero_bytes.mp4"]["error"] == "the file is empty (0 bytes)"
    assert rows["odd/one_keyframe_300f.mp4"]["key_frame_interval"] == "327"


@pytest.mark.needs_real_videos
def test_packets_say_what_a_reader_says(real_videos):
    reasons = {}
    for record in find_videos([real_videos / "clips", real_videos / "odd"]).records:
        facts = probe(record.path, "packets")
        try:
            with open_video(record.path) as reader:
                info = reader.info
        except DecodeError as error:
            reasons[record.path] = (facts[:8], facts.error, error.reason)
            continue
        assert facts.error == "" and facts.num_frames == info.num_frames and facts.codec == info.codec
        assert (facts.width, facts.height, facts.rotation) == (info.width, info.height, info.rotation_degrees)
        assert facts.fps == pytest.approx(info.fps, abs=1e-6)
        assert facts.duration_seconds == pytest.approx(info.duration_seconds, abs=2e-6)
        header = probe(record.path, "headers")
        assert header._replace(num_frames=0, fps=0, duration_seconds=0) == facts._replace(
            num_frames=0, fps=0, duration_seconds=0, key_frame_interval=None
        )
    assert len(reasons) == 4
    assert all(known == (None,) * 8 and mine == theirs for known, mine, theirs in reasons.values())


@pytest.mark.parametrize("depth", ["headers", "packets", "full"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_made_videos(tmp_path, depth, rotation):
    path = write_numbered_video(tmp_path / "v.mp4", 30, fps=20, size=(64, 48), gop=12, rotation=rotation)
    facts = probe(str(path), depth)
    assert facts == FileFacts(
        30, 20.0, 1.5, 64, 48, "h264", rotation, None if depth == "headers" else 12,
        path.stat().st_size, "", path.stat().st_mtime_ns,
    )  # fmt: skip


def test_a_turn_in_the_pictures_of_jpeg_is_told(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    picture = io.BytesIO()
    Image.new("RGB", (64, 48)).save(picture, "JPEG", exif=exif)
    path = tmp_path / "a.mjpeg"
    path.write_bytes(picture.getvalue() * 3)
    facts = probe(str(path), "packets")
    assert (facts.width, facts.height, facts.rotation) == (48, 64, 90)


def test_a_member_of_a_tar_is_as_the_loose_file(tmp_path):
    """Its header is found within the tar, where a rotation stands, and its state is that of the tar."""
    names = ["a.mp4", "b.mov", "c.mkv", "d.mp4"]
    for number, name in enumerate(names[:3]):
        write_numbered_video(tmp_path / name, 10 + number, rotation=90 * number)
    (tmp_path / "d.mp4").write_bytes(b"no video")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in names:
            tar.add(tmp_path / name, f"./{name}")
    mtime = (tmp_path / "t.tar").stat().st_mtime_ns
    for depth in ("headers", "packets", "full"):
        for name in names:
            loose, inside = probe(str(tmp_path / name), depth), probe(f"{tmp_path}/t.tar::{name}", depth)
            assert inside == loose._replace(mtime_ns=mtime), name
    assert probe(f"{tmp_path}/t.tar::e.mp4", "packets").error == "the shard has no member 'e.mp4'"


def test_nothing_is_decoded_unless_asked_for(one_video, monkeypatch):
    monkeypatch.setattr("video_gn.prepare.probe.open_video", lambda *a, **k: pytest.fail("opened for decoding"))
    assert probe(str(one_video), "packets").num_frames == probe(str(one_video), "headers").num_frames == 20


def test_what_cannot_be_read(tmp_path, monkeypatch):
    assert probe(str(tmp_path / "no.mp4"), "packets") == FileFacts(error="the file is missing")
    assert probe(str(tmp_path), "packets").error.startswith("a directory, not a video file, and without numbered")
    path = tmp_path / "no_video.mp4"
    path.write_bytes(b"x" * 100)
    assert probe(str(path), "full").error.startswith("not a video that FFmpeg can read")

    def no_memory(path):
        raise MemoryError

    monkeypatch.setattr("video_gn.prepare.probe.open_stream", no_memory)
    assert probe(str(path), "packets").error == "there is not enough memory to read it"
