"""Scores the network's clip over whole videos, in one pass over the frames of each.

Letters: W windows, K clips of the usual labels, M of both, P crops, T frames, Y classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from video_gn.checks import check_integer
from video_gn.clips import Failure, VideoNote
from video_gn.data.dataset import EvalDataset
from video_gn.data.layout import empty_frames, stream_clips
from video_gn.decoding import VideoReader
from video_gn.errors import DecodeError, SettingError
from video_gn.evaluation.predictor import Predictor, as_records
from video_gn.evaluation.results import top_labels, video_result
from video_gn.lists.records import VideoRecord
from video_gn.models import views_at_a_time
from video_gn.processes import num_cores
from video_gn.timelines.segments import TimelineConfig, find_segments
from video_gn.timelines.windows import Windows, place_windows

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Progress = Callable[[int, int], None]  # (windows done, all)


def label_videos(
    predictor: Predictor,
    videos: Iterable[str | os.PathLike[str] | VideoRecord],
    config: TimelineConfig,
    *,
    top_k: int = 5,
    backend: str = "auto",
    num_threads: int | None = None,
    views_per_forward: int = 10,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any] | Failure]:
    """`Predictor.predict_many` with timelines: one video after the other, each decoded while the network computes.

    Args:
        predictor: Network and preprocessing.
        videos: Paths, or records of a manifest (whose segments are respected).
        config: Windows and segments.
        top_k: Number of labels.
        backend: Decoder, see `video_gn.decoding.open_video`.
        num_threads: Threads of the decoder; None for 1 if the network computes on the CPU, else one a core, at most 8.
        views_per_forward: Most views that go through the network at a time; large ones are fewer on a CPU.
        progress: Called with windows done and windows of a video.

    Yields:
        For each video the result of `Predictor.predict` with "timeline" and "segments", or why it cannot be read.

    Raises:
        CheckpointError: the network's scores are not finite.
    """
    if num_threads is None:
        num_threads = 1 if predictor.device.type == "cpu" else min(8, num_cores())
    dataset = _dataset(predictor, backend=backend, num_threads=num_threads)
    for place, record in enumerate(as_records(videos)):
        reading = _Reading(predictor, config, views_per_forward, progress)
        try:
            frames_VTCHW, note = dataset.read_by(record, reading)
        except DecodeError as error:
            yield Failure(place, record.path, error.reason)
            continue
        yield reading.entry(frames_VTCHW, note, top_k=top_k)


def label_reader(
    predictor: Predictor, reader: VideoReader, config: TimelineConfig, *, top_k: int = 5
) -> dict[str, Any]:
    """The result of one open video, whatever it is read from; see `label_videos`."""
    reading = _Reading(predictor, config)
    return reading.entry(*_dataset(predictor).read_by(reader, reading), top_k=top_k)


def _dataset(predictor: Predictor, **settings: Any) -> EvalDataset:
    return EvalDataset(
        (),
        clip=predictor.clip,
        crops=predictor.crops,
        num_clips=predictor.num_clips,
        spacing=predictor.spacing,
        **settings,
    )


@dataclass
class _Reading:
    """One video's windows and their scores, made while the frames of its usual labels are read."""

    predictor: Predictor
    config: TimelineConfig
    views_per_forward: int = 10
    progress: Progress | None = None
    windows: Windows | None = None
    scores_WY: np.ndarray = field(init=False)
    first_frame_seconds: float = 0.0

    def __call__(self, reader: VideoReader, indices_KT: np.ndarray, segment: tuple[int, int]) -> torch.Tensor:
        """Read and score the windows of a part of the video, and return the views of the usual labels."""
        first, stop = segment
        seconds, clip = reader.frame_seconds, self.predictor.clip
        try:
            windows = place_windows(
                seconds[first:stop],
                float(seconds[stop]) if stop < len(seconds) else reader.info.duration_seconds,
                every_seconds=self.config.every_seconds,
                num_frames=clip.num_frames,
                stride=clip.stride,
                fps=reader.info.fps,
                target_fps=clip.target_fps,
            )
        except SettingError as error:  # too many: of this video, the next one may be shorter
            raise DecodeError(reader.info.path, str(error)) from error
        self.windows, self.first_frame_seconds = windows, reader.info.first_frame_seconds
        self.scores_WY, views_VTCHW = score_windows(
            self.predictor,
            reader,
            windows.indices_WT + first,
            indices_KT,
            views_per_forward=self.views_per_forward,
            progress=self.progress,
        )
        return views_VTCHW

    def entry(self, frames_VTCHW: torch.Tensor, note: VideoNote, *, top_k: int) -> dict[str, Any]:
        """The video's result."""
        assert self.windows is not None
        check_integer("top_k", top_k)
        predictor, windows = self.predictor, self.windows
        if len(windows.middles_W) == 0:
            log.warning(
                "%s: no window of %.2f s fits into it, so its timeline is empty; its labels loop it",
                note.path,
                windows.seconds,
            )
        scores_VY = predictor.scores(frames_VTCHW, video=note.path, views_per_forward=self.views_per_forward)
        return {
            **video_result(note, scores_VY, predictor.classes, num_crops=predictor.crops.num_crops, top_k=top_k),
            "timeline": {
                "window_seconds": round(windows.seconds, 6),
                "every_seconds": self.config.every_seconds,
                "first_frame_seconds": self.first_frame_seconds,
                "times": [round(float(time), 3) for time in windows.middles_W],
                "top": [top_labels(scores_Y, predictor.classes, top_k) for scores_Y in self.scores_WY],
                "gaps": [[round(start, 3), round(end, 3)] for start, end in windows.gaps],
            },
            "segments": find_segments(self.scores_WY, windows, predictor.classes, self.config),
        }


def score_windows(
    predictor: Predictor,
    reader: VideoReader,
    windows_WT: np.ndarray,
    views_KT: np.ndarray,
    *,
    views_per_forward: int = 10,
    progress: Progress | None = None,
) -> tuple[np.ndarray, torch.Tensor]:
    """Score windows while a thread reads the next ones, each frame once; the clips' views come from the same pass.

    Args:
        predictor: Network and preprocessing.
        reader: Open video.
        windows_WT: int64, frames of windows.
        views_KT: int64, frames of clips that are read but not scored.
        views_per_forward: Views that go through the network at a time.
        progress: Called with windows done and all windows.

    Returns:
        float32 (W, Y), softmax scores averaged over crops; and uint8 (K * P, T, 3, h, w).

    Raises:
        DecodeError: for a frame that cannot be decoded.
        CheckpointError: the network's scores are not finite.
    """
    num_crops = predictor.crops.num_crops
    scores_WY = np.zeros((len(windows_WT), 0), dtype=np.float32)
    num_done, views_VTCHW = 0, torch.zeros(0)
    batches = _batches(reader, windows_WT, views_KT, predictor, views_per_forward)
    with closing(read_ahead(batches)) as ahead:
        for numbers, frames_VTCHW in ahead:
            if numbers is None:
                views_VTCHW = frames_VTCHW
                continue
            found_VY = predictor.scores(frames_VTCHW, video=reader.info.path, views_per_forward=views_per_forward)
            if num_done == 0:
                scores_WY = np.zeros((len(windows_WT), found_VY.shape[1]), dtype=np.float32)
            scores_WY[numbers] = found_VY.reshape(len(numbers), num_crops, -1).mean(1)
            num_done += len(numbers)
            if progress is not None:
                progress(num_done, len(windows_WT))
    return scores_WY, views_VTCHW


def _batches(
    reader: VideoReader, windows_WT: np.ndarray, views_KT: np.ndarray, predictor: Predictor, views_per_forward: int
) -> Generator[tuple[list[int] | None, torch.Tensor], None, None]:
    """Views of some windows at a time with their numbers, and at the end, without a number, those of all clips."""
    num_windows, num_clips = len(windows_WT), len(views_KT)
    clips_MT = np.concatenate([windows_WT, views_KT])
    views = batch = torch.zeros(0)
    numbers: list[int] = []
    for number, frames in stream_clips(reader, clips_MT, predictor.crops.apply):
        # Laid out as (clips, P, T, h, w, 3), as the network's channels_last_3d needs no copy then.
        num_crops, *picture = frames[0].shape
        shape = (num_crops, clips_MT.shape[1], *picture)
        if number >= num_windows:
            views = views if len(views) else empty_frames((num_clips, *shape))
            torch.stack(frames, dim=1, out=views[number - num_windows])
            continue
        if not numbers:
            num_views = views_at_a_time(views_per_forward, shape[1:], predictor.device)
            batch = empty_frames((min(max(1, num_views // num_crops), num_windows), *shape))
        torch.stack(frames, dim=1, out=batch[len(numbers)])
        numbers.append(number)
        if len(numbers) == len(batch):
            yield numbers, _as_views(batch)
            numbers = []
    if numbers:
        yield numbers, _as_views(batch[: len(numbers)])
    yield None, _as_views(views)


def _as_views(clips: torch.Tensor) -> torch.Tensor:
    return clips.flatten(0, 1).permute(0, 1, 4, 2, 3)


def read_ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The items of a generator, of which the next one is made in a thread while this one is used.

    Close it if it is left early: it then waits for the thread, and closes `items`.
    """
    end: Any = object()
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="video_gn: reading ahead") as pool:
        future = pool.submit(next, items, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, items, end)
            yield item
