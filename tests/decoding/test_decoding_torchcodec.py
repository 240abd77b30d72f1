"""The torchcodec back end: right or refused, what it needs, and what it is asked to do on a GPU."""

from __future__ import annotations

import csv
import importlib
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoding_cases import assert_same
from media import decode_in_order, read_numbers, write_numbered_video
from places import REAL_VIDEOS

from video_gn.decoding import _held, open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.decoding.libraries import import_torchcodec
from video_gn.errors import DecodeError

needs_torchcodec = pytest.mark.needs_torchcodec

_TABLE = REAL_VIDEOS / "files.csv"
ROWS = list(csv.DictReader(_TABLE.open(encoding="utf-8"))) if _TABLE.is_file() else [{"path": "none"}]
ROWS = [row for row in ROWS if row.get("decoded_frames", "0")]

# What torchcodec must not refuse.
READS = {
    "clips/R6llTwEh07w.mp4",
    "clips/SOX5yA1l24A.mp4",
    "clips/WUzgd7C1pWA.mp4",
    "clips/archery.avi",
    "clips/arm_wrestling.mp4",
    "clips/cleaning_pool.mp4",
    "clips/flipping_a_pancake.mkv",
    "clips/nasa_13013.mp4",
    "clips/v_GGSY1Qvo990.mp4",
    "clips/v_SoccerJuggling_g23_c01.avi",
    "odd/extreme_aspect_2000x64.mp4",
    "odd/five_frames.mp4",
    "odd/no_duration_streamed.webm",
    "odd/odd_321x241_444.mp4",
    "odd/one_keyframe_300f.mp4",
    "odd/pts_offset_1h.mkv",
    "odd/rot90_meta.mp4",
    "odd/single_frame.mp4",
    "odd/test_non_zero_start.mp4",
    "odd/testsrc2_av1_10bit.mp4",
    "odd/vfr_select.mp4",
    "odd/video_90.mov",
    "odd/webm_named.mp4",
}
# What it is known to be wrong about, or what is damaged.
REFUSES = {
    "clips/TrumanShow_wave_f_nm_np1_fr_med_26.avi": r"packed B-frames",
    "clips/eye_makeup.avi": r"packed B-frames",
    "clips/hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": r"packed B-frames",
    "odd/bitflips_in_mdat.mp4": r"packets of it are damaged",
    "odd/corrupted.mp4": r"pictures of it are missing or damaged",
    "odd/discard_first_keyframe.mp4": r"an edit list hides frames",
    "odd/sample_edit_list.mp4": r"an edit list hides frames",
    "odd/truncated_faststart_60pct.mp4": r"packets of it are damaged",
}


@needs_torchcodec
@pytest.mark.needs_real_videos
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["path"])
def test_every_frame_is_that_of_pyav_or_refused(real_videos: Path, row: dict[str, str]) -> None:
    path = real_videos / row["path"]
    expected = np.stack(decode_in_order(path))
    reason = ""
    try:
        check_all_frames(path, expected)
    except DecodeError as error:
        reason = error.reason
    if row["path"] in READS:
        assert reason == ""
    elif row["path"] in REFUSES:
        assert re.search(REFUSES[row["path"]], reason)
    if reason:
        assert reason.startswith("torchcodec cannot be relied on here: ") and reason.endswith(" Use backend='pyav'.")


def check_all_frames(path: Path, expected: np.ndarray) -> None:
    with open_video(path, "torchcodec") as reader, PyAVReader(str(path)) as pyav:
        assert reader.info == pyav.info and np.array_equal(reader.frame_seconds, pyav.frame_seconds)
        num_frames = reader.info.num_frames
        assert num_frames == len(expected)
        rng = random.Random(path.name)
        drawn = [rng.randrange(num_frames) for _ in range(20)]
        requests = [list(range(num_frames)), drawn, sorted(drawn)]
        for indices in [*requests, *([index] for index in drawn[:5])]:
            assert_same(reader.frames_at(indices).numpy(), expected[indices], pyav.pix_fmt)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered_video(tmp_path_factory.mktemp("torchcodec") / "video.mp4", 20)


@needs_torchcodec
class TestRefused:
    @pytest.mark.parametrize(
        ("name", "kwargs", "reason"),
        [
            ("b.avi", {"codec": "mpeg4"}, "its frames have no times of their own"),
            ("open.mp4", {"codec": "mpeg4", "bframes": 2}, "key frames that cannot be decoded by themselves"),
            ("444.mkv", {"codec": "ffv1", "pix_fmt": "yuv411p"}, "key frames that cannot|may convert yuv411p"),
            ("10.mp4", {"pix_fmt": "yuv422p10le"}, "it may convert yuv422p10le to other colours"),
        ],
    )
    def test_kinds_of_files(self, tmp_path: Path, name: str, kwargs: dict, reason: str) -> None:
        path = write_numbered_video(tmp_path / name, 30, **kwargs)
        with pytest.raises(DecodeError, match=rf"torchcodec cannot be relied on here: .*({reason})"):
            open_video(path, "torchcodec").frames_at([0])

    def test_a_count_that_differs(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchcodec.decoders import VideoDecoder

        monkeypatch.setattr(VideoDecoder, "__len__", lambda self: 21)
        with pytest.raises(DecodeError, match="it counts 21 frames where there are 20"):
            open_video(video, "torchcodec")

    def test_a_turn_that_differs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_numbered_video(tmp_path / "turned.mp4", 3, rotation=180)
        real = _held.PyAVReader._describe

        def upright(self, table):
            info, seconds = real(self, table)
            object.__setattr__(info, "rotation_degrees", 0)
            return info, seconds

        monkeypatch.setattr(_held.PyAVReader, "_describe", upright)
        with pytest.raises(DecodeError, match="it rotates frames by 180 degrees where 0 are right"):
            open_video(path, "torchcodec")

    def test_a_frame_of_another_time(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchcodec.decoders import VideoDecoder

        real = VideoDecoder.get_frames_at
        monkeypatch.setattr(VideoDecoder, "get_frames_at", lambda self, rows: real(self, [rows[0], *rows[:-1]]))
        with open_video(video, "torchcodec") as reader:
            assert read_numbers(reader.frames_at([3])) == [3]
            with pytest.raises(DecodeError, match="it gives another frame for frame 4"):
                reader.frames_at([3, 4])

    def test_frames_of_another_shape(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchcodec.decoders import VideoDecoder

        wrong = SimpleNamespace(data=torch.zeros((1, 3, 48, 64), dtype=torch.uint8))
        monkeypatch.setattr(VideoDecoder, "get_frames_at", lambda self, rows: wrong)
        with open_video(video, "torchcodec") as reader:
            with pytest.raises(DecodeError, match=r"frames of shape \(1, 3, 48, 64\) where \(1, 48, 64, 3\) is right"):
                reader.frames_at([0])

    def test_a_failure_of_its_own(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchcodec.decoders import VideoDecoder

        def fail(self, rows):
            raise RuntimeError("\n  no more frames \n")

        monkeypatch.setattr(VideoDecoder, "get_frames_at", fail)
        with open_video(video, "torchcodec") as reader:
            with pytest.raises(DecodeError, match=r"it fails \(no more frames\)"):
                reader.frames_at([0])

    def test_a_file_that_it_cannot_open(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchcodec import decoders

        def fail(*args: object, **kwargs: object) -> None:
            raise ValueError("no such stream")

        monkeypatch.setattr(decoders, "VideoDecoder", fail)
        with pytest.raises(DecodeError, match=r"it cannot open the file \(no such stream\)"):
            open_video(video, "torchcodec")

    def test_damage_is_seen_before_a_frame_is_given(self, tmp_path: Path) -> None:
        path = write_numbered_video(tmp_path / "damaged.mp4", 40, container_options={"movflags": "faststart"})
        data = bytearray(path.read_bytes())
        data[-900:-300] = b"\x7f" * 600
        path.write_bytes(data)
        with pytest.raises(DecodeError, match=r"torchcodec cannot be relied on here: packets of it (are damaged|show)"):
            open_video(path, "torchcodec").frames_at([0])

    def test_frames_that_get_lost(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_video(video, "torchcodec") as reader:
            monkeypatch.setattr(
                _held.PacketDecoder, "num_decoded", property(lambda s: 7, lambda s, value: None), raising=False
            )
            with pytest.raises(DecodeError, match=r"cannot be relied on here: only 7 of 20 frames decode\."):
                reader.frames_at([0])

    def test_frames_that_change_their_size(self, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = _held.PacketDecoder.feed
        sizes = iter(range(1000))

        def feed(self):
            return [SimpleNamespace(width=64 + next(sizes), height=frame.height) for frame in real(self)]

        with open_video(video, "torchcodec") as reader:
            monkeypatch.setattr(_held.PacketDecoder, "feed", feed)
            with pytest.raises(DecodeError, match="its frames change their size"):
                reader.frames_at([0])


@needs_torchcodec
@pytest.mark.parametrize("threads", [1, 3])
def test_order_repeats_and_threads(video: Path, threads: int) -> None:
    with open_video(video, "torchcodec", num_threads=threads) as reader:
        for indices in ([0], [19, 3, 3, 0], list(range(20)), [5, 6, 7], [19]):
            frames = reader.frames_at(indices)
            assert frames.is_contiguous() and frames.dtype == torch.uint8
            assert read_numbers(frames) == indices


# ---- what is missing ---------------------------------------------------------------------------


@needs_torchcodec
def test_missing_libraries_of_ffmpeg_are_named(video: Path) -> None:
    """torchcodec's own code runs into what the loader says where FFmpeg is not installed."""
    program = (
        "import sys, ctypes, re\n"
        "real = ctypes.CDLL.__init__\n"
        "def load(self, name, *args, **kwargs):\n"
        "    found = re.search(r'libtorchcodec_(core|decoder|custom_ops)(\\d)', str(name))\n"
        "    if found:\n"
        "        raise OSError(f'libavutil.so.{52 + int(found[2])}: cannot open shared object file: No such file')\n"
        "    real(self, name, *args, **kwargs)\n"
        "ctypes.CDLL.__init__ = load\n"
        "from video_gn.decoding import open_video\n"
        "try: open_video(sys.argv[1], 'torchcodec')\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(video)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("backend='torchcodec' needs FFmpeg's shared libraries (libavcodec, libavformat, ...)")
    assert "apt-get install ffmpeg" in done.stdout and "torch that" not in done.stdout


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FFmpeg 8:\nOSError: libavutil.so.60: cannot open shared object file: No such file", "needs FFmpeg's shared"),
        (
            "OSError: libavutil.so.60: cannot open shared object file\nOSError: Could not load this library: /a/b.so\n"
            "OSError: /a/b.so: undefined symbol: x",
            r"cannot load torchcodec's libraries \(/a/b.so: undefined symbol: x\)\. Install.*goes with this torch",
        ),
        ("something else\nand more", r"libraries \(something else\)"),
        ("", r"libraries \(no reason given\)"),
    ],
)
def test_why_the_libraries_do_not_load(monkeypatch: pytest.MonkeyPatch, text: str, reason: str) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=reason):
        import_torchcodec()


# ---- GPU ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
def test_a_device_that_others_do_not_have(video: Path, backend: str) -> None:
    with pytest.raises(ValueError, match=r"device must be 'cpu' with the back end '\w+', got 'cuda'\. Only torchcodec"):
        open_video(video, backend, device="cuda")


@needs_torchcodec
def test_a_device_that_is_not_there(video: Path) -> None:
    with pytest.raises(DecodeError, match="torchcodec cannot be relied on here: it cannot open the file"):
        open_video(video, "torchcodec", device="cuda:99")


@needs_torchcodec
def test_no_quiet_fall_back_to_the_cpu(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchcodec import decoders

    class Decoder:
        metadata = SimpleNamespace(rotation=None)
        cpu_fallback = "NVcuvid unavailable"

        def __init__(self, source: str, **kwargs: object) -> None:
            assert kwargs["device"] == "cuda"

        def __len__(self) -> int:
            return 20

    monkeypatch.setattr(decoders, "VideoDecoder", Decoder)
    with pytest.raises(DecodeError, match=r"cuda cannot decode it \(NVcuvid unavailable\)"):
        open_video(video, "torchcodec", device="cuda")


@needs_torchcodec
@pytest.mark.needs_cuda
def test_on_a_gpu(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "video.mp4", 40, size=(256, 192))
    with open_video(path, "torchcodec", device="cuda") as reader, open_video(path) as pyav:
        assert reader.info == pyav.info
        for indices in ([0], [39, 3, 3, 0], list(range(40))):
            frames = reader.frames_at(indices)
            assert frames.is_cuda and frames.dtype == torch.uint8 and frames.is_contiguous()
            assert read_numbers(frames.cpu()) == indices
            # Chroma is interpolated in another way; the pictures are noise, where that shows most.
            assert (frames.cpu().float() - pyav.frames_at(indices).float()).abs().mean() < 8


@needs_torchcodec
@pytest.mark.needs_real_videos
@pytest.mark.parametrize("first", ["decord", "torchcodec"])
def test_it_works_beside_decord_in_one_process(real_videos: Path, first: str) -> None:
    """decord's own FFmpeg must not take the place of the system's: torchcodec refused AV1 so, and crashed."""
    second = {"decord": "torchcodec", "torchcodec": "decord"}[first]
    program = (
        "import sys; from video_gn.decoding import open_video\n"
        "plain, av1, first, second = sys.argv[1:]\n"
        "for backend in (first, second, first):\n"
        "    with open_video(plain, backend) as reader: reader.frames_at([0, 9, 5])\n"
        "with open_video(av1, 'torchcodec') as reader: print(reader.frames_at(range(reader.info.num_frames)).shape[0])"
    )
    paths = [str(real_videos / name) for name in ("clips/R6llTwEh07w.mp4", "odd/testsrc2_av1_10bit.mp4")]
    done = subprocess.run([sys.executable, "-c", program, *paths, first, second], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "25\n"
