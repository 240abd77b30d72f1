"""Real clips damaged at random: no hang, no crash, and what plain decoding in order gives, ours gives too.

VIDEO_GN_DAMAGED says how many files (the default takes some 8 seconds). A file's number is its seed: it says which
clip is taken and what happens to it, so that `python tests/decoding/test_decoding_fuzz.py DIRECTORY NUMBER` repeats
one. The files are read in a child process, so that one that crashes or hangs it is named.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import queue
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Discard
from media import decode_in_order, write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import DecodeError, FrameCountError

NUM_DAMAGED = int(os.environ.get("VIDEO_GN_DAMAGED", "24"))
CLIP_SECONDS = 2
# Of a child that says nothing; a file takes about 0.3 seconds.
SILENCE_SECONDS = 120
# Of the frames that plain decoding gives, bit for bit and in order.
MIN_SHARE = 0.95
# So that a header that promises the moon fails here instead of filling the machine.
CHILD_BYTES = 8 << 30


# What happens to a file


def _flip(rng: random.Random, data: bytearray, first: int, last: int, most: int) -> None:
    for _ in range(rng.randint(1, most)):
        data[rng.randrange(first, last)] ^= 1 << rng.randrange(8)


def _flip_anywhere(rng: random.Random, data: bytearray) -> None:
    _flip(rng, data, 0, len(data), rng.choice([1, 10, 200]))


def _flip_ends(rng: random.Random, data: bytearray) -> None:
    """Most of what a container says about its contents lies at one of its ends."""
    first = rng.choice([0, max(0, len(data) - 4096)])
    _flip(rng, data, first, min(first + 4096, len(data)), 20)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(1, len(data)) :]


def _zero(rng: random.Random, data: bytearray) -> None:
    size = round(len(data) * 0.25 * rng.random() ** 3) + 1
    start = rng.randrange(max(1, len(data) - size))
    data[start : start + size] = bytes(len(data[start : start + size]))


def _several(rng: random.Random, data: bytearray) -> None:
    for damage in rng.choices([_flip_anywhere, _flip_ends, _zero], k=2):
        damage(rng, data)
    if rng.random() < 0.3:
        _cut(rng, data)


KINDS: dict[str, Callable[[random.Random, bytearray], None]] = {
    "flip": _flip_anywhere,
    "flip-ends": _flip_ends,
    "cut": _cut,
    "zero": _zero,
    "several": _several,
}


def shorten(path: Path, out: Path) -> Path:
    """Copy the packets of the first seconds of a file's first video and first audio stream."""
    with av.open(str(path), metadata_errors="ignore") as source, av.open(str(out), "w") as target:
        streams = [*source.streams.video[:1], *source.streams.audio[:1]]
        copies = {s.index: target.add_stream_from_template(s) for s in streams}
        for packet in source.demux(streams):
            if packet.dts is None or packet.dts * packet.time_base > CLIP_SECONDS:
                continue
            packet.stream = copies[packet.stream.index]
            target.mux(packet)
    return out


def damage(clips: Path, number: int) -> tuple[str, bytes]:
    """The damaged file of a number: its clip and kind of damage, and what it holds."""
    rng = random.Random(number)
    kind = list(KINDS)[number % len(KINDS)]
    clip = rng.choice(sorted(clips.iterdir()))
    data = bytearray(clip.read_bytes())
    KINDS[kind](rng, data)
    return f"{clip.name} ({kind})", bytes(data)


# In the child process


def _digest(frame_HWC: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(frame_HWC).tobytes(), digest_size=12).hexdigest()


def _packets_of(container: Any, stream: Any) -> Iterator[av.Packet | None]:
    """A stream's packets, then None, also where the container breaks off."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError:
        pass
    yield None


def read_plainly(path: Path, *, alone: bool = False) -> list[str]:
    """The oracle: decode packet by packet from the first one; all errors are passed over.

    Args:
        path: the file.
        alone: tell the demuxer that nobody wants the other streams, so that their damage does no harm.

    Returns:
        A digest of each frame: RGB, all of the first one's size, turned where it is to be by a right angle.
    """
    digests: list[str] = []
    size: dict[str, int] = {}
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for other in container.streams:
                if alone and other.index != stream.index:
                    other.discard = Discard.all
            for packet in _packets_of(container, stream):
                try:
                    frames = stream.codec_context.decode(packet)
                except av.error.FFmpegError:
                    continue
                for frame in frames:
                    size = size or {"width": frame.width, "height": frame.height}
                    pixels = frame.to_ndarray(format="rgb24", interpolation="BICUBIC", **size)
                    digests.append(_digest(pixels if frame.rotation % 90 else np.rot90(pixels, frame.rotation // 90)))
    except (av.error.FFmpegError, IndexError, AttributeError):  # not opened; no video stream; no decoder for it
        pass
    return digests


def read_ours(path: Path) -> list[str]:
    """Every frame of a file, drawn again once where the count was wrong; then some again, which must be the same."""
    with open_video(path) as reader:
        for attempt in range(2):
            try:
                num_frames = reader.info.num_frames
                digests = []
                for first in range(0, num_frames, 16):
                    frames = reader.frames_at(range(first, min(first + 16, num_frames)))
                    digests += [_digest(frame.numpy()) for frame in frames]
                break
            except FrameCountError:
                if attempt:
                    raise
        assert len(digests) == len(reader.frame_seconds) and (np.diff(reader.frame_seconds) > 0).all()
        again = [num_frames - 1, 0, num_frames // 2]
        assert [_digest(frame.numpy()) for frame in reader.frames_at(again)] == [digests[i] for i in again]
    return digests


def num_in_common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence: how many frames are the same, bit for bit, in the same order."""
    best = [0] * (len(other) + 1)
    for a in one:
        row = [0]
        for i, b in enumerate(other):
            row.append(best[i] + 1 if a == b else max(row[i], best[i + 1]))
        best = row
    return best[-1]


def compare(path: Path) -> dict[str, Any]:
    """Read a file both ways."""
    expected = read_plainly(path)
    error = ""
    ours: list[str] = []
    try:
        ours = read_ours(path)
    except DecodeError as caught:
        error = str(caught).replace(f"{path}: ", "", 1)
        if caught.path != str(path) or str(path) not in str(caught):
            return {"wrong": f"the error does not name the file: {caught}"}
    common = num_in_common(expected, ours)
    if common < len(ours):  # plain decoding may stop where the sound breaks off
        alone = read_plainly(path, alone=True)
        is_plain = num_in_common(alone, ours) == len(ours)
    else:
        is_plain = True
    result = {"expected": len(expected), "ours": len(ours), "common": common, "error": error}
    if not expected:
        return {**result, "wrong": "" if error else "plain decoding gives no frame, and no DecodeError says so"}
    if common < MIN_SHARE * len(expected):
        return {**result, "wrong": "too few of the frames of plain decoding"}
    return {**result, "wrong": "" if is_plain else "frames that plain decoding does not give"}


def child(clips: Path, path: Path, numbers: list[int]) -> None:
    """Write two lines for each number: one before, one after."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    for number in numbers:
        name, data = damage(clips, number)
        path.write_bytes(data)
        case = {"number": number, "name": name}
        sys.stdout.write(json.dumps(case) + "\n")
        sys.stdout.flush()  # before anything can go wrong
        sys.stdout.write(json.dumps({**case, **compare(path)}) + "\n")
        sys.stdout.flush()


# In the parent process


def watch(clips: Path, path: Path, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Run children until each number has its result; one that dies or says nothing is a result too."""
    left = list(numbers)
    root = Path(__file__).resolve().parents[2]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VIDEO_GN_DECODE_TIMEOUT_SECONDS": "30",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]),
    }
    while left:
        command = [sys.executable, __file__, str(clips), str(path), *map(str, left)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=env
        ) as process:
            lines: queue.Queue[str | None] = queue.Queue()
            said: list[str] = []
            readers = [
                threading.Thread(target=_forward, args=(process.stdout, lines.put), daemon=True),
                threading.Thread(target=_forward, args=(process.stderr, said.append), daemon=True),
            ]
            for reader in readers:
                reader.start()
            at = {"number": left[0], "name": "before the first file"}
            try:
                while (line := lines.get(timeout=SILENCE_SECONDS)) is not None:
                    at = json.loads(line)
                    if "wrong" in at:
                        left.remove(at["number"])
                        yield at
                if not left:
                    return
                why = f"the process died: {process.wait()}"
            except queue.Empty:
                process.kill()
                why = f"nothing for {SILENCE_SECONDS} seconds"
        readers[1].join()
        left.remove(at["number"])
        yield {**at, "wrong": f"{why}\n" + "".join(line for line in said[-40:] if line)}


def _forward(stream: Any, put: Callable[[Any], object]) -> None:
    for line in stream:
        put(line)
    put(None)


@pytest.fixture(scope="module")
def clips(real_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real clips, shortened."""
    directory = tmp_path_factory.mktemp("clips")
    for path in sorted((real_videos / "clips").iterdir()):
        shorten(path, directory / path.name)
    assert any(directory.iterdir())
    return directory


@pytest.mark.needs_real_videos
@pytest.mark.timeout(300 + 3 * NUM_DAMAGED)
def test_damaged_files_give_what_plain_decoding_gives(clips: Path, tmp_path: Path) -> None:
    results = list(watch(clips, tmp_path / "damaged", list(range(NUM_DAMAGED))))
    assert len(results) == NUM_DAMAGED
    if summary := os.environ.get("VIDEO_GN_DAMAGED_REPORT"):
        Path(summary).write_text("\n".join(json.dumps(result) for result in results) + "\n", encoding="utf-8")
    wrong = [result for result in results if result["wrong"]]
    assert not wrong, f"{len(wrong)} of {NUM_DAMAGED}:\n" + "\n".join(map(json.dumps, wrong))
    # The damage is such that there is something to compare.
    assert sum(result["expected"] > 0 for result in results) >= NUM_DAMAGED // 3


@pytest.mark.parametrize("num_whole", [0, 1, 9, 18])
def test_a_torn_picture_counts_where_there_are_few(tmp_path: Path, num_whole: int) -> None:
    # Found in short clips: leaving the torn picture out took more than 5% of what decodes, or all of it.
    path = write_numbered_video(tmp_path / "torn.avi", 40, codec="mpeg4", bframes=0)
    with av.open(str(path)) as container:
        torn = [packet for packet in container.demux(video=0) if packet.size][num_whole]
    path.write_bytes(path.read_bytes()[: torn.pos + torn.size * 3 // 4])
    expected = decode_in_order(path)
    assert len(expected) == num_whole + 1
    with PyAVReader(str(path)) as reader:
        frames = reader.frames_at(range(reader.info.num_frames)).numpy()
    assert len(frames) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))


def test_a_torn_picture_that_cannot_decode_is_not_counted(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "torn.mp4", 9, bframes=0, container_options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size][8]
    path.write_bytes(path.read_bytes()[: last.pos + 6])
    expected = decode_in_order(path)
    assert len(expected) == 8
    with PyAVReader(str(path)) as reader:
        assert reader.info.num_frames == 8
        frames = reader.frames_at(range(8)).numpy()
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))


if __name__ == "__main__":
    child(Path(sys.argv[1]), Path(sys.argv[2]), [int(number) for number in sys.argv[3:]])
