"""Segments as cues."""

import av
import pytest

from video_gn.timelines.subtitles import write_subtitles

SEGMENTS = [
    {"label": "a <b> & c", "start_seconds": 0.0, "end_seconds": 2.75, "score": 0.93412},
    {"label": "unsure", "start_seconds": 2.75, "end_seconds": 3599.9996, "score": 0.4},
]
ENTRY = {"timeline": {"first_frame_seconds": 0.25}, "segments": SEGMENTS}


def test_webvtt(tmp_path):
    write_subtitles(tmp_path / "x.vtt", [ENTRY])
    assert (tmp_path / "x.vtt").read_text() == (
        "WEBVTT\n\n1\n00:00:00.250 --> 00:00:03.000\na &lt;b&gt; &amp; c 0.93\n\n"
        "2\n00:00:03.000 --> 01:00:00.250\nunsure 0.40\n"
    )


def test_subrip(tmp_path):
    write_subtitles(tmp_path / "x.srt", [ENTRY])
    assert (tmp_path / "x.srt").read_text() == (
        "1\n00:00:00,250 --> 00:00:03,000\na <b> & c 0.93\n\n2\n00:00:03,000 --> 01:00:00,250\nunsure 0.40\n"
    )


@pytest.mark.parametrize("suffix", [".vtt", ".srt"])
def test_ffmpeg_reads_the_cues(tmp_path, suffix):
    write_subtitles(tmp_path / f"x{suffix}", [{**ENTRY, "segments": [{**SEGMENTS[1], "label": "跳\n\n1 --> 2"}]}])
    with av.open(str(tmp_path / f"x{suffix}")) as container:
        (packet,) = (p for p in container.demux() if p.size)
        assert float(packet.pts * packet.time_base) == 3.0
        assert float(packet.duration * packet.time_base) == pytest.approx(3597.25)
        assert "跳\\n\\n1" in bytes(packet).decode()


def test_no_segments_and_no_video(tmp_path):
    write_subtitles(tmp_path / "x.vtt", [{**ENTRY, "segments": []}])
    assert (tmp_path / "x.vtt").read_text() == "WEBVTT\n"
    write_subtitles(tmp_path / "y.vtt", [])
    assert not (tmp_path / "y.vtt").exists()
