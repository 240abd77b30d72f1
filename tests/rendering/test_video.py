"""A rendered video: the same frames at the same times, drawn on, with the same bytes of sound."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from disks import fill, small_disk
from media import all_frames, read_numbers, with_pixel_aspect, write_numbered_video

from video_gn import files
from video_gn.errors import ConfigError, DecodeError, DiskFullError, UnwritableError
from video_gn.rendering.video import check_output, render_frames

VFR_MS = [0, 40, 50, 133, 400, 402, 700, 1500, 1541, 1600]


def same(frame_HWC: np.ndarray, seconds: float) -> np.ndarray:
    return frame_HWC


def packets(path: Path, kind: str) -> list[tuple[Any, bytes]]:
    """Times in seconds and bytes of the packets of all streams of a kind."""
    with av.open(str(path)) as container:
        streams = [s for s in container.streams if s.type == kind]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(streams) if p.size] if streams else []


def times(path: Path) -> list[Any]:
    return sorted(time for time, _ in packets(path, "video"))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(np.float64) - second) ** 2)))


@pytest.mark.parametrize(
    ("name", "audio", "output"),
    [
        ("a.mp4", "aac", "b.mp4"),
        ("a.mp4", "aac", "b.mkv"),
        ("a.mkv", "libopus", "b.mp4"),
        ("a.avi", "libmp3lame", "b.mp4"),
        ("a.ts", "mp2", "b.mp4"),
        ("a.mkv", "pcm_u8", "b.mkv"),
    ],
)
def test_sound_is_bit_for_bit_and_keeps_its_place(tmp_path: Path, name: str, audio: str, output: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    source = write_numbered_video(tmp_path / name, 30, audio=audio, codec=codec, bframes=0)
    render_frames(source, tmp_path / output, same)
    before, after = packets(source, "audio"), packets(tmp_path / output, "audio")
    assert [data for _, data in after] == [data for _, data in before] and len(before) > 10
    assert read_numbers(all_frames(tmp_path / output)) == list(range(30))
    # Where sound lies beside the picture: in whole samples in mp4, both in milliseconds in mkv.
    offset_before, offset_after = (p[0][0] - times(f)[0] for p, f in ((before, source), (after, tmp_path / output)))
    assert abs(offset_after - offset_before) <= (0.001 if output.endswith("mkv") else 1 / 40_000)


@pytest.mark.parametrize("start_ms", [0, 1700])
def test_variable_times_and_a_late_start_are_exact(tmp_path: Path, start_ms: int) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 10, pts_ms=VFR_MS, start_ms=start_ms)
    seen: list[float] = []
    render_frames(source, tmp_path / "b.mp4", lambda frame, seconds: seen.append(seconds) or frame)  # type: ignore[func-returns-value]
    assert times(tmp_path / "b.mp4") == times(source)
    assert [round(1000 * t + start_ms) for t in seen] == [round(1000 * t) for t in times(source)]
    assert seen[0] == 0


def test_a_recorded_stream_starts_at_0(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.ts", 10, start_ms=7_200_000)
    render_frames(source, tmp_path / "b.mp4", same)
    assert times(tmp_path / "b.mp4") == [t - times(source)[0] for t in times(source)]


def test_what_is_drawn_is_seen_and_the_rest_stays(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 5, size=(96, 64), rotation=90)

    def draw(frame: np.ndarray, seconds: float) -> np.ndarray:
        frame[:16] = (250, 40, 120)
        return frame

    render_frames(source, tmp_path / "b.mp4", draw)
    before, after = all_frames(source), all_frames(tmp_path / "b.mp4")
    assert before.shape == after.shape == (5, 64, 96, 3)  # turned, and no longer asked to be
    assert np.abs(after[:, 2:14].mean((0, 1, 2)) - (250, 40, 120)).max() < 4
    # The picture is half noise, which the encoder flattens.
    assert psnr(before[:, 20:].mean(-1), after[:, 20:].mean(-1)) > 26


@pytest.mark.parametrize(
    ("pix_fmt", "matrix"), [("yuv420p", 1), ("yuv420p", 2), ("yuv420p", 5), ("yuvj420p", 5), ("yuv420p10le", 9)]
)
def test_colours_stay(tmp_path: Path, pix_fmt: str, matrix: int) -> None:
    codec = "mjpeg" if pix_fmt == "yuvj420p" else "ffv1"
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        stream.codec_context.colorspace = matrix
        patches = np.zeros((64, 64, 3), np.uint8)
        patches[:32, :32], patches[:32, 32:], patches[32:, :32] = (220, 40, 30), (20, 200, 60), (40, 50, 230)
        patches[32:, 32:] = 128
        frame = av.VideoFrame.from_ndarray(patches, format="rgb24").reformat(format=pix_fmt)
        frame.colorspace = matrix
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    render_frames(tmp_path / "a.mkv", tmp_path / "b.mp4", same)
    middles = np.s_[8:64:32, 8:64:32]
    before, after = (all_frames(tmp_path / name)[0][middles].astype(int) for name in ("a.mkv", "b.mp4"))
    assert np.abs(after - before).max() <= 6  # 8 bits of a limited range, and the encoder's loss
    with av.open(str(tmp_path / "b.mp4")) as made:
        assert made.streams.video[0].codec_context.colorspace == matrix


def test_odd_sizes_lose_the_last_row_and_column_and_pixels_keep_their_shape(tmp_path: Path) -> None:
    odd = write_numbered_video(tmp_path / "a.mp4", 3, size=(81, 65), pix_fmt="yuv444p")
    source = with_pixel_aspect(odd, "4/3")
    render_frames(source, tmp_path / "b.mp4", same)
    after = all_frames(tmp_path / "b.mp4")
    assert after.shape == (3, 64, 80, 3)
    assert psnr(all_frames(source)[:, :64, :80].mean(-1), after.mean(-1)) > 26
    with av.open(str(tmp_path / "b.mp4")) as made:
        assert made.streams.video[0].sample_aspect_ratio == pytest.approx(4 / 3)


def test_an_empty_sound_stream_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_numbered_video(tmp_path / "a.ts", 10, audio="mp2").read_bytes()
    units = [data[i : i + 188] for i in range(0, len(data), 188)]
    sound = 0x101  # FFmpeg's number of the second stream
    kept = [unit for unit in units if int.from_bytes(unit[1:3], "big") & 0x1FFF != sound]
    assert len(kept) < len(units)
    (tmp_path / "b.ts").write_bytes(b"".join(kept))
    render_frames(tmp_path / "b.ts", tmp_path / "c.mp4", same)
    assert read_numbers(all_frames(tmp_path / "c.mp4")) == list(range(10)) and not packets(tmp_path / "c.mp4", "audio")
    assert [m for m in caplog.messages if "sound stream 1 is empty" in m] == caplog.messages[:1]


def test_sound_in_adts_loses_its_headers_alone(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.ts", 20, audio="aac")
    render_frames(source, tmp_path / "b.mp4", same)
    before, after = ([data for _, data in packets(tmp_path / name, "audio")] for name in ("a.ts", "b.mp4"))
    assert after == [data[7:] for data in before]  # 7 bytes: ISO/IEC 13818-7, 6.2


def test_damage_in_the_middle_is_passed(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 40, audio="aac", size=(96, 64))
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    (tmp_path / "d.mp4").write_bytes(data)
    expected = all_frames(tmp_path / "d.mp4")
    seen: list[float] = []
    render_frames(tmp_path / "d.mp4", tmp_path / "b.mp4", lambda f, s: seen.append(s) or f)  # type: ignore[func-returns-value]
    after = all_frames(tmp_path / "b.mp4")
    assert len(after) == len(expected) > 20 and times(tmp_path / "b.mp4")[-1] == pytest.approx(39 / 25)
    assert psnr(expected.mean(-1), after.mean(-1)) > 24
    sound = [data for _, data in packets(tmp_path / "d.mp4", "audio")]
    assert [data for _, data in packets(tmp_path / "b.mp4", "audio")] == sound


def test_a_folder_of_frames_has_no_sound(tmp_path: Path) -> None:
    from PIL import Image

    frames = all_frames(write_numbered_video(tmp_path / "a.mp4", 4))
    (tmp_path / "folder").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "folder" / f"img_{number:05d}.png")
    render_frames(tmp_path / "folder", tmp_path / "b.mkv", same)
    assert read_numbers(all_frames(tmp_path / "b.mkv")) == [0, 1, 2, 3]


# ---- refusals, and nothing half-written ----------------------------------------------------------


def test_places_that_are_refused(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 4)
    before = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    for name, match in (("a.mp4", "must not be the video"), ("link.mp4", "must not be"), ("a.gif", "end in .mp4 or")):
        with pytest.raises(ConfigError, match=match):
            render_frames(source, tmp_path / name, same)
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="is no directory"):
        render_frames(source, tmp_path / "file" / "b.mp4", same)
    with pytest.raises(DecodeError, match="missing"):
        render_frames(tmp_path / "none.mp4", tmp_path / "b.mp4", same)
    assert source.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "file", "link.mp4"]


def test_times_that_no_file_can_hold(tmp_path: Path) -> None:
    data = bytearray(write_numbered_video(tmp_path / "a.avi", 8, codec="mpeg4", bframes=0).read_bytes())
    scale = data.index(b"strh") + 8 + 20  # dwScale: a frame lasts so many units
    data[scale : scale + 4] = (0x7FFFFFFF).to_bytes(4, "little")
    (tmp_path / "b.avi").write_bytes(data)
    with pytest.raises(DecodeError, match=r"b\.avi: FFmpeg cannot write its frames and times"):
        render_frames(tmp_path / "b.avi", tmp_path / "c.mp4", same)
    assert not list(tmp_path.glob("*c.mp4*"))


def test_sound_that_mp4_cannot_hold(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.mkv", 4, audio="pcm_u8")
    with pytest.raises(ConfigError, match=r"cannot hold the sound of .*a\.mkv \(pcm_u8\)\. Write .*b\.mkv\."):
        check_output(str(source), tmp_path / "b.mp4")


def test_a_draw_that_fails_leaves_nothing_and_the_old_file(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 8, audio="aac")
    (tmp_path / "b.mp4").write_bytes(b"old")
    for draw, error, match in (
        (lambda f, s: f[:10], ValueError, r"shape \(48, 64, 3\), got uint8 \(10, 64, 3\)"),
        (lambda f, s: None, ValueError, "got NoneType"),
        (lambda f, s: 1 / (s < 0.2) and f, ZeroDivisionError, None),
    ):
        with pytest.raises(error, match=match):
            render_frames(source, tmp_path / "b.mp4", draw)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    assert (tmp_path / "b.mp4").read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 60, size=(320, 240))
    with small_disk(tmp_path / "disk", 2) as disk:
        (disk / "b.mp4").write_bytes(b"old")
        filler = fill(disk, leave=200_000)
        with pytest.raises(DiskFullError, match=r"b\.mp4 could not be written"):
            render_frames(source, disk / "b.mp4", same)
        assert sorted(disk.iterdir()) == [disk / "b.mp4", filler] and (disk / "b.mp4").read_bytes() == b"old"


def test_a_killed_one_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 8)
    child = os.fork()
    if child == 0:
        render_frames(source, tmp_path / "b.mp4", lambda f, s: f if s < 0.2 else os.kill(os.getpid(), signal.SIGKILL))
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [p.name for p in tmp_path.glob(".b.mp4.*")] == [f".b.mp4.{child}.tmp"] and len(list(tmp_path.iterdir())) == 2
    files._temporary_files.cache_clear()  # as in a new process
    render_frames(source, tmp_path / "b.mp4", same)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


@pytest.mark.needs_real_videos
@pytest.mark.parametrize(
    "name", [pytest.param("vfr_select.mp4", marks=pytest.mark.slow), "video_90.mov", "test_non_zero_start.mp4"]
)
def test_real_oddities(tmp_path: Path, real_videos: Path, name: str) -> None:
    source = real_videos / "odd" / name
    render_frames(source, tmp_path / "b.mp4", same)
    assert times(tmp_path / "b.mp4") == times(source)
    before, after = all_frames(source), all_frames(tmp_path / "b.mp4")
    assert before.shape == after.shape and psnr(before, after) > 34
