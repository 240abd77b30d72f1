"""Opening, choosing a back end, wrong arguments, and what a reader refuses."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from decoding_cases import TORCHCODEC
from media import numbered_frame, read_number, read_numbers, write_numbered_video
from PIL import Image

from video_gn import decoding
from video_gn.decoding import VideoReader, open_video
from video_gn.decoding.libraries import import_decord
from video_gn.errors import DecodeError

BACKENDS = ["auto", "pyav", "decord", TORCHCODEC]
# Texts that FFmpeg takes for lists of other files.
LISTS = {
    "concat": "ffconcat version 1.0\nfile PART\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nPART\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=PART\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?>\n<MPD type="static"><Period><BaseURL>PART</BaseURL></Period></MPD>\n',
    "vobsub": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 0\n",
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered_video(tmp_path_factory.mktemp("open") / "video.mp4", 20)


@pytest.mark.parametrize("backend", BACKENDS)
class TestWhatIsNoVideo:
    def test_missing(self, tmp_path: Path, backend: str) -> None:
        with pytest.raises(DecodeError, match=r"none\.mp4: the file is missing"):
            open_video(tmp_path / "none.mp4", backend)

    def test_below_a_file(self, video: Path, backend: str) -> None:
        with pytest.raises(DecodeError, match="the file is missing"):
            open_video(video / "x.mp4", backend)

    def test_directory(self, tmp_path: Path, backend: str) -> None:
        with pytest.raises(DecodeError, match="a directory, not a video file"):
            open_video(tmp_path, backend)

    def test_empty(self, tmp_path: Path, backend: str) -> None:
        (tmp_path / "empty.mp4").touch()
        with pytest.raises(DecodeError, match="the file is empty"):
            open_video(tmp_path / "empty.mp4", backend)

    @pytest.mark.parametrize("content", [b"\0" * 5000, b"<html>404 not found</html>" * 50, b"x"])
    def test_not_a_video(self, tmp_path: Path, backend: str, content: bytes) -> None:
        (tmp_path / "page.mp4").write_bytes(content)
        with pytest.raises(DecodeError, match=r"not a video that FFmpeg can read \(\w+"):
            open_video(tmp_path / "page.mp4", backend)

    def test_pipe(self, tmp_path: Path, backend: str) -> None:
        os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
        with pytest.raises(DecodeError, match="a pipe, device or socket, not a video file"):
            open_video(tmp_path / "pipe.mp4", backend)

    def test_zero_byte_in_the_name(self, backend: str) -> None:
        with pytest.raises(DecodeError, match="cannot be read"):
            open_video("a\0b.mp4", backend)

    def test_sound_only(self, tmp_path: Path, backend: str) -> None:
        path = tmp_path / "sound.m4a"
        write_sound(path)
        with pytest.raises(DecodeError, match=r"no video stream in it \(it has: audio\)"):
            open_video(path, backend)

    @pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "shard.tar::list.mp4"])
    @pytest.mark.parametrize("kind", LISTS)
    def test_lists_of_other_files(self, video: Path, tmp_path: Path, kind: str, name: str, backend: str) -> None:
        os.mkfifo(tmp_path / "pipe")  # opening it would block
        for part in ("pipe", video, "http://127.0.0.1:9/a.ts"):
            (tmp_path / "list").write_text(LISTS[kind].replace("PART", str(part)))
            with tarfile.open(tmp_path / "shard.tar", "w") as tar:
                tar.add(tmp_path / "list", "list.mp4")
            if "::" not in name:
                shutil.copy(tmp_path / "list", tmp_path / name)
            with pytest.raises(DecodeError, match="not a video, but a playlist or the like: .*Make one video of them"):
                open_video(tmp_path / name, backend)


def test_a_picture_whose_name_is_a_pattern(tmp_path: Path) -> None:
    for name, number in (("a%03d.jpg", 7), ("a001.jpg", 3), ("b?.jpg", 7), ("b1.jpg", 3), ("c%*.jpg", 7)):
        Image.fromarray(numbered_frame(number)).save(tmp_path / name, quality=95)
    for name in ("a%03d.jpg", "b?.jpg", "c%*.jpg"):
        with open_video(tmp_path / name) as reader:
            assert reader.info.num_frames == 1 and read_numbers(reader.frames_at([0])) == [7]


def write_sound(path: Path, *, cover: bool = False) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, i * 1024
            container.mux(sound.encode(frame))
        if picture is not None:
            shown = av.VideoFrame.from_ndarray(numbered_frame(3), format="rgb24")
            container.mux(picture.encode(shown))
            container.mux(picture.encode(None))
        container.mux(sound.encode(None))


def test_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    write_sound(path, cover=True)
    with pytest.raises(DecodeError, match="no video stream in it"):
        open_video(path)


def test_forbidden(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DecodeError, match=r"cannot be read \(Permission denied\)"):
        open_video(video)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"cannot be read .*too long"):
        open_video(tmp_path / ("x" * 300))


@pytest.mark.parametrize("backend", ["auto", TORCHCODEC])
def test_first_of_several_video_streams(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"threads": "1"}) for _ in range(2)]
        for stream, size in zip(streams, [(64, 48), (128, 96)], strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(10):
            for stream, first in zip(streams, (0, 100), strict=True):
                picture = numbered_frame(first + i, (stream.width, stream.height))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    with open_video(path, backend) as reader:
        assert (reader.info.width, reader.info.num_frames) == (64, 10)
        assert read_numbers(reader.frames_at([9, 0, 9])) == [9, 0, 9]
    with pytest.raises(
        DecodeError, match=r"the file has 2 video streams, and it takes the largest\. Use backend='pyav'"
    ):
        open_video(path, "decord")


@pytest.mark.parametrize("backend", BACKENDS)
def test_relative_name_with_a_colon(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    (tmp_path / "a:b.mp4").write_bytes(video.read_bytes())
    monkeypatch.chdir(tmp_path)
    with open_video("a:b.mp4", backend) as reader:
        assert reader.info.path == "a:b.mp4"
        assert read_number(reader.frames_at([7])[0]) == 7


def test_name_that_is_no_text(video: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    Path(os.fsdecode(name)).write_bytes(video.read_bytes())
    for path in (name, os.fsdecode(name), Path(os.fsdecode(name))):
        with open_video(path) as reader:
            assert read_number(reader.frames_at([7])[0]) == 7


def test_decord_set_to_another_library(video: Path) -> None:
    decord = import_decord()
    decord.bridge.set_bridge("torch")
    try:
        with open_video(video, "decord") as reader:
            assert read_numbers(reader.frames_at([7, 3, 7])) == [7, 3, 7]
    finally:
        decord.bridge.set_bridge("native")


def test_unknown_backend_names_the_known_ones(video: Path) -> None:
    with pytest.raises(
        ValueError, match=r"backend must be one of \['auto', 'pyav', 'decord', 'torchcodec'\], got 'opencv'"
    ):
        open_video(video, "opencv")


@pytest.mark.parametrize("num_threads", [0, -1])
def test_thread_count(video: Path, num_threads: int) -> None:
    with pytest.raises(ValueError, match=f"num_threads must be at least 1, got {num_threads}"):
        open_video(video, num_threads=num_threads)


def test_auto_says_once_what_it_takes(
    video: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_announced", set())
    with caplog.at_level(logging.INFO, logger="video_gn.decoding"):
        for _ in range(3):
            open_video(video).close()
    assert [record.message for record in caplog.records] == ["videos are decoded by pyav (backend auto)"]


@pytest.mark.parametrize(("backend", "package"), [("decord", "decord2"), ("torchcodec", "video-gn[torchcodec]")])
def test_a_missing_package_is_named(video: Path, monkeypatch: pytest.MonkeyPatch, backend: str, package: str) -> None:
    real = importlib.import_module

    def without(name: str, *args: str) -> object:
        if name.partition(".")[0] == backend:
            raise ModuleNotFoundError(f"No module named {backend!r}", name=backend)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    message = f"got {backend!r}, which needs the package {package!r}. Install it (pip install {package})"
    with pytest.raises(ImportError, match=re.escape(message)):
        open_video(video, backend)
    open_video(video).close()


def test_another_missing_module_is_not_blamed_on_the_backend(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, *, num_threads: int) -> VideoReader:
        raise ModuleNotFoundError("No module named 'x'", name="x")

    monkeypatch.setitem(decoding.BACKENDS, "pyav", (broken, "av", "av"))
    with pytest.raises(ModuleNotFoundError, match="No module named 'x'"):
        open_video(video)


@pytest.mark.parametrize("backend", BACKENDS)
class TestIndices:
    @pytest.mark.parametrize("indices", [[20], [-1], [0, 5, 21], np.array([1 << 40])])
    def test_outside(self, video: Path, backend: str, indices) -> None:
        with open_video(video, backend) as reader:
            with pytest.raises(IndexError, match=r"indices must be in \[0, 20\).*video\.mp4, got -?\d+"):
                reader.frames_at(indices)
            assert read_number(reader.frames_at([19])[0]) == 19  # the reader goes on

    @pytest.mark.parametrize("indices", [[], np.zeros(0, dtype=np.int64)])
    def test_none(self, video: Path, backend: str, indices) -> None:
        with open_video(video, backend) as reader:
            with pytest.raises(ValueError, match="indices must be at least one frame number, got none"):
                reader.frames_at(indices)

    @pytest.mark.parametrize("indices", [[1.0], [True, False], ["1"], np.array([0.5])])
    def test_not_integers(self, video: Path, backend: str, indices) -> None:
        with open_video(video, backend) as reader:
            with pytest.raises(ValueError, match="indices must be integers, got"):
                reader.frames_at(indices)

    @pytest.mark.parametrize("indices", [[[0, 1], [2, 3]], np.int64(3)])
    def test_not_a_row(self, video: Path, backend: str, indices) -> None:
        with open_video(video, backend) as reader:
            with pytest.raises(ValueError, match="indices must be one row of frame numbers, got an array of shape"):
                reader.frames_at(indices)

    @pytest.mark.parametrize("indices", [range(3), (4, 4, 4), np.array([3, 1, 3], dtype=np.uint8)])
    def test_kinds_that_are_fine(self, video: Path, backend: str, indices) -> None:
        with open_video(video, backend) as reader:
            assert read_numbers(reader.frames_at(indices)) == list(indices)


@pytest.mark.parametrize("backend", BACKENDS)
class TestReader:
    def test_closed(self, video: Path, backend: str) -> None:
        with open_video(video, backend) as reader:
            pass
        reader.close()
        with pytest.raises(ValueError, match=r"is closed\. Call open_video again"):
            reader.frames_at([0])
        assert reader.info.num_frames == 20

    def test_pickle(self, video: Path, backend: str) -> None:
        with open_video(video, backend) as reader:
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with pytest.raises(TypeError, match="cannot be pickled or sent to another process"):
                    pickle.dumps(reader, protocol)

    def test_frames_outlive_the_reader(self, video: Path, backend: str) -> None:
        with open_video(video, backend) as reader:
            frames = reader.frames_at([3, 1])
        del reader
        assert read_numbers(frames) == [3, 1]

    def test_other_process(self, video: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_video(video, backend) as reader:
            monkeypatch.setattr(os, "getpid", lambda: 1)
            with pytest.raises(RuntimeError, match="must be used in the process that opened it"):
                reader.frames_at([0])
            monkeypatch.undo()

    def test_file_is_closed(self, video: Path, backend: str) -> None:
        reader = open_video(video, backend)
        reader.frames_at([0])
        reader.close()
        assert str(video) not in open_files()


def open_files() -> set[str]:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here")
    return {str(link.readlink()) for link in folder.iterdir() if link.is_symlink()}


def test_files_are_closed_after_errors(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    write_sound(path)
    with pytest.raises(DecodeError):
        open_video(path)
    with pytest.raises(IndexError), open_video(video) as reader:
        reader.frames_at([99])
    assert not {str(video), str(path)} & open_files()


def test_a_failure_in_the_middle_leaves_a_usable_reader(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding._rgb import RgbConverter

    real = RgbConverter.write
    errors: list[BaseException] = [KeyboardInterrupt(), av.error.InvalidDataError(1, "broken")]

    def fail(self, frame, out) -> None:
        if frame.pts and errors:
            raise errors.pop(0)
        real(self, frame, out)

    monkeypatch.setattr(RgbConverter, "write", fail)
    with open_video(video) as reader:
        with pytest.raises(KeyboardInterrupt):
            reader.frames_at([0, 5, 9])
        with pytest.raises(DecodeError, match=r"video\.mp4: decoding failed \(broken\)"):
            reader.frames_at([0, 5, 9])
        assert read_numbers(reader.frames_at([6, 7, 8])) == [6, 7, 8]


def test_a_failing_file_system_is_not_the_end_of_the_video(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding import probe

    class Failing:
        def demux(self, stream: object):
            raise av.error.OSError(5, "Input/output error")
            yield

    with pytest.raises(DecodeError, match=r"video\.mp4: reading failed \(Input/output error\)"):
        list(probe.packets_of(str(video), Failing(), None))  # type: ignore[arg-type]


def test_no_decoder(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding import opening

    class Stream:
        index, type, codec_context = 0, "video", None

    monkeypatch.setattr(opening, "video_streams", lambda container: [Stream()])
    with pytest.raises(DecodeError, match="FFmpeg has no decoder for its video stream"):
        open_video(video)


def _read_in_worker(path: str, queue) -> None:
    with open_video(path) as reader:
        queue.put(read_number(reader.frames_at([7])[0]))


def test_workers_open_their_own(video: Path) -> None:
    open_video(video).frames_at([1])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_read_in_worker, args=(str(video), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [7, 7]
    for worker in workers:
        worker.join()


def test_auto_is_pyav(video: Path) -> None:
    with open_video(video) as reader:
        assert isinstance(reader, VideoReader) and type(reader).__name__ == "PyAVReader"


@pytest.mark.parametrize("backend", ["pyav", "decord", TORCHCODEC])
def test_nothing_is_written_to_the_terminal(tmp_path: Path, backend: str) -> None:
    path = write_numbered_video(tmp_path / "noisy.mp4", 20, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    data[-400:-200] = b"\x7f" * 200
    path.write_bytes(data)
    program = (
        "import sys\nfrom video_gn.decoding import open_video\nfrom video_gn.errors import DecodeError\n"
        "try:\n    with open_video(sys.argv[1], sys.argv[2]) as reader: reader.frames_at([0, 10])\n"
        "except DecodeError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), backend], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_package_opens_no_back_end() -> None:
    program = "import sys, video_gn.decoding; assert not {'av', 'decord', 'torchcodec'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", program], check=True)
