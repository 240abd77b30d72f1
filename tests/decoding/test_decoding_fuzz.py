"""Real clips damaged at random, and made files with faults of the container: the right frames, or an error.

PyAV's frames are those of plain decoding, whatever was read before; decord and torchcodec give the same or refuse;
nothing hangs or crashes. VIDEO_GN_DAMAGED says how many files there are of both, VIDEO_GN_CALL_ORDERS how many orders
of calls are tried on each (the defaults take some 15 seconds of CPU). A file's number is its seed:
`python tests/decoding/test_decoding_fuzz.py made DIRECTORY NUMBER` makes one and reads it, and a directory of clips in
place of "made" damages one of them. Files are read in a child process, so that one that crashes or hangs it is named.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import queue
import random
import resource
import shutil
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from containers import DAMAGED, WHOLE, Made
from decoding_cases import assert_same
from faults import DAMAGES, make, shorten
from media import decode_in_order, frames_in_order, write_numbered_video
from mp4_boxes import MATRICES, set_matrix

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.decoding.libraries import import_torchcodec
from video_gn.errors import DecodeError, FrameCountError

NUM_DAMAGED = int(os.environ.get("VIDEO_GN_DAMAGED", "24"))
NUM_CALL_ORDERS = int(os.environ.get("VIDEO_GN_CALL_ORDERS", "1"))  # of each file
# Of a child that says nothing; a file takes about 0.3 seconds.
SILENCE_SECONDS = 120
# Of the frames that plain decoding gives of a damaged file, bit for bit and in order.
MIN_SHARE = 0.95
# Of the damaged files: see `try_calls`.
MAX_PATCHED = 0.01
# So that a header that promises the moon fails here instead of filling the machine.
CHILD_BYTES = 8 << 30
# Pictures that are kept, to compare more than their digests.
KEPT_BYTES = 256 << 20


def damage(clips: Path, number: int, folder: Path) -> Made:
    """The damaged file of a number: a clip, with one kind of damage."""
    rng = random.Random(number)
    kind = list(DAMAGES)[number % len(DAMAGES)]
    clip = rng.choice(sorted(clips.iterdir()))
    data = bytearray(clip.read_bytes())
    DAMAGES[kind](rng, data)
    folder.mkdir(parents=True)
    path = folder / "damaged"
    path.write_bytes(data)
    return Made(path, f"{clip.name} ({kind})", DAMAGED)


@cache
def others() -> tuple[str, ...]:
    """The other back ends, as far as they can be imported."""
    try:
        import_torchcodec()
    except ImportError:
        return ("decord",)
    return "decord", "torchcodec"


# In the child process


class Wrong(Exception):
    """A reader did what it must not."""


def _digest(frame_HWC: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(frame_HWC).tobytes(), digest_size=12).hexdigest()


@dataclass
class Truth:
    """What plain decoding gives: a digest of each frame, the first ones' pixels, and the format of the first one."""

    digests: list[str] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)
    pix_fmt: str = ""


def read_plainly(path: Path, *, alone: bool = False) -> Truth:
    """The oracle, see `frames_in_order`; a file that cannot be opened has no frames."""
    truth, left = Truth(), KEPT_BYTES
    try:
        for frame, pixels in frames_in_order(path, alone=alone):
            truth.digests.append(_digest(pixels))
            truth.pix_fmt = truth.pix_fmt or frame.format.name
            truth.seconds.append(frame.time)
            left -= pixels.nbytes
            if left > 0:
                truth.frames.append(pixels)
    except (av.error.FFmpegError, IndexError, AttributeError):  # not opened; no video stream; no decoder for it
        pass
    return truth


def read_ours(path: Path, truth: Truth, *, is_whole: bool) -> list[str]:
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
        seconds = reader.frame_seconds
        if not (len(digests) == len(seconds) and seconds[0] == 0 and (np.diff(seconds) > 0).all()):
            raise Wrong("times that do not ascend from 0")
        if not (0 < reader.info.fps < np.inf and seconds[-1] < reader.info.duration_seconds < np.inf):
            raise Wrong(f"{reader.info.fps} fps, {reader.info.duration_seconds} seconds")
        again = [num_frames - 1, 0, num_frames // 2]
        if [_digest(frame.numpy()) for frame in reader.frames_at(again)] != [digests[i] for i in again]:
            raise Wrong("frames read again differ")
        if is_whole and path.suffix != ".avi" and None not in truth.seconds and len(seconds) == len(truth.seconds):
            late = np.abs(np.subtract(truth.seconds, truth.seconds[0]) - seconds)
            if (np.diff(truth.seconds) > 0).all() and late.max() > 1e-6:
                raise Wrong(f"times that are {late.max():g} seconds off")
    return digests


def draw_calls(rng: random.Random, num_frames: int) -> Iterator[list[int]]:
    """Requests of one reader, for a number of frames that may be corrected meanwhile."""
    last = num_frames - 1
    for _ in range(rng.randint(2, 6)):
        at = rng.randint(0, last)
        few = [rng.randint(0, last) for _ in range(rng.randint(2, 8))]
        yield rng.choice(
            [
                [at], [0], [last], [at, at, at], few, sorted(few), sorted(few, reverse=True), [last, 0, at],
                list(range(at, min(at + 2 * rng.randint(4, 16), num_frames), 2)), list(range(at, -1, -1)),
                list(range(num_frames)),
            ]
        )  # fmt: skip


def try_calls(path: Path, rng: random.Random, expected: list[str], *, state: str) -> bool:
    """Random calls of a fresh reader give the frames of reading in order.

    In a damaged file, damage that was not decoded is not known: a frame after it may have the number that the packets
    promise it, which is too high by no more than the frames that are lost. And a damaged picture that looks as if none
    referred to it is passed over: those that do are then patched in another way.

    Returns:
        Whether frames were patched in another way.
    """
    with open_video(path) as reader:
        lost = max(0, reader.info.num_frames - len(expected)) if state == DAMAGED else 0
        num_corrections = 0
        made: list[list[int]] = []
        for drawn in draw_calls(rng, reader.info.num_frames):
            for _ in range(2):
                indices = [min(index, reader.info.num_frames - 1) for index in drawn]
                made.append(indices)
                try:
                    frames = reader.frames_at(indices)
                    break
                except FrameCountError as error:
                    num_corrections += 1
                    if num_corrections > 1 or not reader.info.num_frames == error.num_frames < error.promised:
                        raise Wrong(f"counts wrongly again ({error}), calls {made}") from error
            for index, frame in zip(indices, frames, strict=True):
                if _digest(frame.numpy()) in expected[max(0, index - lost) : index + 1]:
                    continue
                if state == DAMAGED and isinstance(reader, PyAVReader) and reader.doubt is None:
                    return True
                raise Wrong(f"frame {index} is another one, calls {made}")
    return False


def try_other(path: Path, backend: str, rng: random.Random, truth: Truth, *, state: str) -> str:
    """Why another back end refuses a file; empty if it reads it, and its frames are the right ones.

    "patched" if torchcodec's FFmpeg patches damage in another way that no decoder reports (MJPEG, VP8).
    """
    try:
        with open_video(path, backend) as reader:
            num_frames = reader.info.num_frames
            for indices in draw_calls(rng, num_frames):
                frames = reader.frames_at(indices).numpy()
                if num_frames != len(truth.digests):
                    raise Wrong(f"{backend} counts {num_frames} frames, {len(truth.digests)} decode")
                for index, frame in zip(indices, frames, strict=True):
                    is_right = _digest(frame) == truth.digests[index]
                    if not is_right and backend == "torchcodec" and index < len(truth.frames):
                        is_right = _is_near(frame, truth.frames[index], truth.pix_fmt)
                    if not is_right and state == DAMAGED and backend == "torchcodec":
                        return "patched"
                    if not is_right:
                        raise Wrong(f"{backend}'s frame {index} is another one, calls {indices}")
    except DecodeError as error:
        return error.reason
    return ""


def _is_near(frame: np.ndarray, expected: np.ndarray, pix_fmt: str) -> bool:
    try:
        assert_same(frame, expected, pix_fmt)
    except AssertionError:
        return False
    return True


def num_in_common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence: how many frames are the same, bit for bit, in the same order."""
    best = [0] * (len(other) + 1)
    for a in one:
        row = [0]
        for i, b in enumerate(other):
            row.append(best[i] + 1 if a == b else max(row[i], best[i + 1]))
        best = row
    return best[-1]


def check_in_order(made: Made, truth: Truth) -> list[str]:
    """Read a file in order, with `Wrong` for too few frames, or others than plain decoding gives: the digests."""
    path, expected = made.path, truth.digests
    try:
        ours = read_ours(path, truth, is_whole=made.state == WHOLE)
    except DecodeError as error:
        if error.path != str(path) or str(path) not in str(error):
            raise Wrong(f"the error does not name the file: {error}") from error
        if expected:
            raise Wrong(f"refused, but plain decoding gives {len(expected)} frames ({error.reason})") from error
        return []
    if not expected:
        raise Wrong("plain decoding gives no frame, and no DecodeError says so")
    # Plain decoding may stop where the sound breaks off.
    if made.state != DAMAGED:
        if ours not in (expected, read_plainly(path, alone=True).digests):
            common = num_in_common(expected, ours)
            raise Wrong(f"{len(ours)} frames for {len(expected)} of plain decoding, {common} of them the same")
        return ours
    common = num_in_common(expected, ours)
    if common < MIN_SHARE * len(expected):
        raise Wrong(f"{len(ours)} frames for {len(expected)} of plain decoding, only {common} of them the same")
    if common < len(ours) and num_in_common(read_plainly(path, alone=True).digests, ours) < len(ours):
        raise Wrong("frames that plain decoding does not give")
    return ours


def compare(made: Made, number: int) -> dict[str, Any]:
    """Read a file in all ways: frames of plain decoding, why each back end refuses it (empty if not), what is wrong."""
    truth = read_plainly(made.path)
    result: dict[str, Any] = {"expected": len(truth.digests), "refused": {}, "patched": 0, "wrong": ""}
    try:
        ours = check_in_order(made, truth)
        result["refused"]["pyav"] = "" if ours else "no frame decodes"
        for order in range(NUM_CALL_ORDERS if ours else 0):
            rng = random.Random(f"{number} {order}")
            result["patched"] += try_calls(made.path, rng, ours, state=made.state)
        for backend in others():
            rng = random.Random(f"{number} {backend}")
            result["refused"][backend] = refusal = try_other(made.path, backend, rng, truth, state=made.state)
            result["patched"] += refusal == "patched"
            if refusal and made.is_plain:
                raise Wrong(f"{backend} refuses an everyday file: {refusal}")
    except Wrong as error:
        result["wrong"] = str(error)
    except Exception:  # noqa: BLE001  any other exception is what is looked for
        result["wrong"] = traceback.format_exc()
    return result


def child(source: str, folder: Path, numbers: list[int]) -> None:
    """Write two lines for each number: one before, one after. Files with a fault stay in `folder`."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    for number in numbers:
        place = folder / str(number)
        shutil.rmtree(place, ignore_errors=True)
        made = make(number, place) if source == "made" else damage(Path(source), number, place)
        case = {"number": number, "name": made.name, "path": str(made.path), "state": made.state}
        sys.stdout.write(json.dumps(case) + "\n")
        sys.stdout.flush()  # before anything can go wrong
        result = compare(made, number)
        sys.stdout.write(json.dumps({**case, **result}) + "\n")
        sys.stdout.flush()
        if not result["wrong"]:
            shutil.rmtree(place)


# In the parent process


def watch(source: str, folder: Path, numbers: list[int]) -> Iterator[dict[str, Any]]:
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
        command = [sys.executable, __file__, source, str(folder), *map(str, left)]
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


def check(source: str, folder: Path, numbers: range) -> list[dict[str, Any]]:
    """Try numbered files, print how many were read, and fail with what is wrong."""
    results = []
    for result in watch(source, folder, list(numbers)):
        results.append(result)
        if summary := os.environ.get("VIDEO_GN_DAMAGED_REPORT"):
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    assert len(results) == len(numbers)
    wrong = [result for result in results if result["wrong"]]
    for backend in ("pyav", *others()):
        refusals = [result["refused"].get(backend, "wrong") for result in results if "refused" in result]
        counts = Counter("read" if not r else "wrong" if r == "wrong" else "refused" for r in refusals)
        print(f"{backend}: {dict(counts)}")  # noqa: T201
    assert not wrong, f"{len(wrong)} of {len(numbers)}:\n" + "\n".join(map(json.dumps, wrong))
    num_patched = sum(result["patched"] > 0 for result in results)
    print(f"patched otherwise by unseen damage: {num_patched}")  # noqa: T201
    assert num_patched <= 1 + MAX_PATCHED * len(numbers)
    # The damage is such that there is something to compare.
    assert sum(result["expected"] > 0 for result in results) * 3 >= len(numbers)
    return results


@pytest.mark.needs_real_videos
@pytest.mark.timeout(300 + 5 * NUM_DAMAGED)
def test_damaged_files_give_what_plain_decoding_gives(clips: Path, tmp_path: Path) -> None:
    check(str(clips), tmp_path, range(NUM_DAMAGED))


@pytest.mark.timeout(300 + 50 * NUM_DAMAGED)
@pytest.mark.parametrize(
    "numbers",
    [range(NUM_DAMAGED), pytest.param(range(NUM_DAMAGED, 11 * NUM_DAMAGED), marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_faults_of_containers_move_no_frame(tmp_path: Path, numbers: range) -> None:
    results = check("made", tmp_path, numbers)
    whole = [result for result in results if result["state"] == WHOLE]
    for backend in others():
        assert sum(not result["refused"][backend] for result in whole) >= len(whole) // 5, backend


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the command ffmpeg")
@pytest.mark.parametrize("matrix", MATRICES)
def test_the_oracle_turns_and_mirrors_as_ffmpeg_does(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = write_numbered_video(tmp_path / "turned.mp4", 2)
    set_matrix(path, matrix)
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    expected = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    frames = np.stack(decode_in_order(path))
    assert frames.shape[1:] == ((64, 48, 3) if matrix[1] else (48, 64, 3))
    # Another version of FFmpeg may convert colours otherwise.
    difference = np.abs(frames.astype(int) - expected.reshape(frames.shape))
    assert difference.mean() < 4


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]), [int(number) for number in sys.argv[3:]])
