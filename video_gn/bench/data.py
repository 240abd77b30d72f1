"""`video-gn bench data`: the cost of the data path, as ratios of medians measured side by side on one thread.

Shape letters: N frames read, K clips, T frames, C channels, H, W.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_gn import sampling
from video_gn.bench._video import frames_of, given_or_made, records_of
from video_gn.bench.measuring import (
    contender_row,
    describe_machine,
    head_lines,
    one_thread,
    ratio_of_medians,
    resident_bytes,
    side_by_side,
    summarize,
    timed,
    verdict,
)
from video_gn.bench.peers import bench_peers, peer_lines
from video_gn.clips import VideoNote
from video_gn.data.crops import TestCrops, TrainTransform
from video_gn.data.dataset import ClipConfig, EvalDataset, TrainDataset
from video_gn.data.layout import collate, read_views
from video_gn.decoding import VideoReader, open_video
from video_gn.errors import DecodeError, FrameCountError
from video_gn.lists.records import VideoRecord

# The targets hold for a video like those of Kinetics: 340 x 256, 10 s, a key frame in 250.
ONE_PASS_TARGET = 0.25
TRAINING_TARGET = 1.3
BACKENDS = ("pyav", "decord")
_NUM_CLIPS = 10
_CLIP = ClipConfig(num_frames=32, stride=2)
# Training clips of a video in a round: their cost depends on where they start, so one would not be enough.
_DRAWS = 8
_MEMORY_VIDEOS = 500
_MEMORY_WARM_UP = 50


def bench_data(videos: Sequence[str], *, rounds: int, peers: bool = False) -> dict[str, Any]:
    """Measure decoding and the making of clips; the figures are for `format_page` and json.

    Without videos, one of 340x256 and 10 s is made; one that cannot be read is a DecodeError. `peers` measures other
    projects too, if they are installed.
    """
    with tempfile.TemporaryDirectory(prefix="video-gn-bench-") as directory, one_thread():
        paths = given_or_made(videos, directory)
        result: dict[str, Any] = {
            "machine": describe_machine(),
            "rounds": rounds,
            "videos": [_describe(path, made=not videos) for path in paths],
            # First: memory that an earlier contender has given back would hide a leak.
            "memory": _memory(paths, _MEMORY_VIDEOS),
            "ten_clip_test": {name: _ten_clips_or_refusal(paths, name, rounds) for name in BACKENDS},
            "training_clip": _training_clips(paths, rounds),
        }
        if peers:
            result["peers"] = bench_peers(paths, rounds=rounds)
    return result


class _Clock(VideoReader):
    """An open reader whose `frames_at` is timed."""

    def __init__(self, reader: VideoReader) -> None:
        super().__init__(reader.path)
        self._reader, self._info, self._seconds = reader, reader.info, reader.frame_seconds
        self.seconds = 0.0

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        start = time.perf_counter()
        frames = self._reader.frames_at(indices)
        self.seconds += time.perf_counter() - start
        return frames


# ---- a test video's ten clips ------------------------------------------------------------------


def _ten_clips_or_refusal(paths: Sequence[str], backend: str, rounds: int) -> dict[str, Any]:
    """The figures; or the reason, if a back end is not installed or refuses a video."""
    try:
        return _ten_clips(paths, backend, rounds)
    except (ImportError, DecodeError) as error:
        return {"refused": str(error)}


def _ten_clips(paths: Sequence[str], backend: str, rounds: int) -> dict[str, Any]:
    indices = {path: _test_indices(path, backend) for path in paths}

    def one_pass(reader: VideoReader, indices_KT: np.ndarray) -> None:
        # One pixel of each frame: laying out the clips is no part of decoding.
        read_views(reader, indices_KT, lambda frames: frames[:, :1, :1].permute(0, 3, 1, 2)[None])

    def clip_by_clip(reader: VideoReader, indices_KT: np.ndarray) -> None:
        for row in indices_KT:
            reader.frames_at(row)

    decoded: dict[str, int] = {}

    def decode(name: str, read: Callable[[VideoReader, np.ndarray], None]) -> Callable[[int], float]:
        def measure(number: int) -> float:
            seconds, count = 0.0, 0
            for path in paths:
                with open_video(path, backend=backend) as reader:
                    # Work that is done once for a file (decord's check for damage) comes before the clock runs, and
                    # the decoder is left at the end, so that neither way finds frames decoded already.
                    reader.frames_at([int(indices[path].max())])
                    before = getattr(reader, "num_decoded", 0)
                    clock = _Clock(reader)
                    read(clock, indices[path])
                    seconds += clock.seconds
                    count += getattr(reader, "num_decoded", 0) - before
            decoded[name] = count
            return seconds

        return measure

    records = records_of(paths)
    dataset = EvalDataset(records, clip=_CLIP, crops=TestCrops("center"), num_clips=_NUM_CLIPS, backend=backend)

    def whole(number: int) -> None:
        for place in range(len(paths)):
            frames_of(dataset[place])

    contenders = {
        "one_pass": decode("one_pass", one_pass),
        "clip_by_clip": decode("clip_by_clip", clip_by_clip),
        "whole_sample": timed(whole),
    }
    summary = summarize(side_by_side(contenders, rounds))
    return {
        **summary,
        "ratio": ratio_of_medians(summary, "one_pass", "clip_by_clip"),
        "target": ONE_PASS_TARGET,
        "num_frames_wanted": int(sum(len(np.unique(i)) for i in indices.values())),
        **({"num_frames_decoded": decoded} if any(decoded.values()) else {}),
    }


def _test_indices(path: str, backend: str) -> np.ndarray:
    """Frames of the clips, int64 (K, T), drawn from the frames that decode."""
    with open_video(path, backend=backend) as reader:
        for attempt in (0, 1):
            indices_KT = sampling.test_clips(
                reader.info.num_frames, num_clips=_NUM_CLIPS, num_frames=_CLIP.num_frames, stride=_CLIP.stride
            )
            try:
                reader.frames_at(np.unique(indices_KT))
                break
            except FrameCountError:
                if attempt:
                    raise
    return indices_KT


# ---- a training clip ---------------------------------------------------------------------------


class _BareDecoding(TrainDataset):
    """Decodes the same frames as a training sample, and does nothing with them."""

    def _read(
        self, record: VideoRecord, draw: Callable[[int, float], np.ndarray], read: Any
    ) -> tuple[torch.Tensor, VideoNote]:
        with open_video(record.path, backend=self.backend) as reader:
            for attempt in (0, 1):
                try:
                    frames = reader.frames_at(draw(reader.info.num_frames, reader.info.fps)[0])
                    break
                except FrameCountError:
                    if attempt:
                        raise
            return frames.permute(0, 3, 1, 2)[None], VideoNote(record.path, reader.info.num_frames, reader.info.fps, ())


def _training_clips(paths: Sequence[str], rounds: int) -> dict[str, Any]:
    records = records_of(paths)
    sets: dict[str, TrainDataset] = {
        "sample": TrainDataset(records, clip=_CLIP, transform=TrainTransform(), seed=0),
        "bare_decoding": _BareDecoding(records, clip=_CLIP, transform=TrainTransform(), seed=0),
    }

    def measure(dataset: TrainDataset) -> Callable[[int], float]:
        def run(number: int) -> float:
            keys = [(number * _DRAWS + draw, place) for draw in range(_DRAWS) for place in range(len(paths))]
            start = time.perf_counter()
            for key in keys:
                frames_of(dataset[key])
            return (time.perf_counter() - start) / len(keys)

        return run

    summary = summarize(side_by_side({name: measure(dataset) for name, dataset in sets.items()}, rounds))
    return {**summary, "ratio": ratio_of_medians(summary, "sample", "bare_decoding"), "target": TRAINING_TARGET}


# ---- memory ------------------------------------------------------------------------------------


def _memory(paths: Sequence[str], num_videos: int) -> dict[str, Any]:
    """Read all views of many videos, one after the other, as a test does, and watch the memory."""
    dataset = EvalDataset(records_of(paths), clip=_CLIP, crops=TestCrops("center"), num_clips=_NUM_CLIPS)
    warm_up = min(_MEMORY_WARM_UP, num_videos // 2)
    sizes: list[int | None] = []
    for number in range(num_videos):
        collate([dataset[number % len(paths)]])
        sizes.append(resident_bytes())
    start, known = sizes[warm_up - 1], [size for size in sizes[warm_up:] if size is not None]
    result: dict[str, Any] = {"num_videos": num_videos, "warm_up": warm_up}
    if start is None or not known:
        return {**result, "growth_mb": None, "peak_growth_mb": None, "rss_mb": None}
    growth, peak = (known[-1] - start) / 1e6, (max(known) - start) / 1e6
    return {**result, "growth_mb": growth, "peak_growth_mb": peak, "rss_mb": start / 1e6}


# ---- the page ----------------------------------------------------------------------------------


def _describe(path: str, *, made: bool) -> dict[str, Any]:
    with open_video(path) as reader:
        info = reader.info
    return {
        "path": "made for this run" if made else path,
        **{name: getattr(info, name) for name in ("width", "height", "num_frames", "fps", "codec")},
        "kbit_per_second": Path(path).stat().st_size * 8 / 1000 / info.duration_seconds,
    }


def format_page(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = head_lines(result) + [
        f"{v['path']}: {v['width']}x{v['height']}, {v['num_frames']} frames, {v['fps']:.4g} fps, {v['codec']}, "
        f"{v['kbit_per_second']:.0f} kbit/s"
        for v in result["videos"]
    ]
    lines.append("Targets are for videos of 340x256 and 10 s.")
    for name, found in result["ten_clip_test"].items():
        lines += ["", f"10 clips of 32 frames, stride 2, decoding alone, {name}"]
        if "refused" in found:
            lines.append(f"  not measured: {found['refused']}")
            continue
        decoded = {n: f"{number} frames decoded" for n, number in found.get("num_frames_decoded", {}).items() if number}
        lines += [
            contender_row("one pass over the union of frames", found["one_pass"], decoded.get("one_pass", "")),
            contender_row("one open reader, clip by clip", found["clip_by_clip"], decoded.get("clip_by_clip", "")),
            f"  ratio {found['ratio']:.3f}, {verdict(found['ratio'], at_most=found['target'])}",
            contender_row("the whole sample: open, decode, crop", found["whole_sample"]),
        ]
    found = result["training_clip"]
    lines += [
        "",
        "One training clip of 32 frames, stride 2, to 224 px",
        contender_row("sample: decode, resize, crop, flip", found["sample"]),
        contender_row("bare decoding of the same frames", found["bare_decoding"]),
        f"  ratio {found['ratio']:.3f}, {verdict(found['ratio'], at_most=found['target'])}",
        "",
    ]
    memory = result["memory"]
    lines.append(f"Memory, {memory['num_videos']} test videos of 10 clips, one after the other")
    if memory["growth_mb"] is None:
        lines.append("  not measured: this system has no /proc/self/status")
    else:
        lines.append(
            f"  {memory['rss_mb']:.0f} MB after {memory['warm_up']} videos, {memory['growth_mb']:+.1f} MB at the end "
            f"({memory['peak_growth_mb']:+.1f} MB at most); it should not grow"
        )
    if "peers" in result:
        lines += ["", *peer_lines(result["peers"])]
    return "\n".join(line.rstrip() for line in lines) + "\n"
