"""What a core reads of these very videos: clips a second, bytes, and what prepared files would change; all measured."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from video_gn.bench.measuring import one_thread
from video_gn.data.dataset import ClipDataset, Sample
from video_gn.data.layout import collate
from video_gn.decoding import open_video
from video_gn.errors import DecodeError
from video_gn.lists.records import VideoRecord
from video_gn.prepare.encode import EncodeSettings, encode
from video_gn.prepare.prepare import CRF, KEY_FRAME_INTERVAL
from video_gn.prepare.probe import file_state

if TYPE_CHECKING:
    from video_gn.data.datamodule import VideoDataModule

log = logging.getLogger(__name__)

_IO = Path("/proc/self/io")
# Frames times pixels of the videos that are encoded to see what it changes: some 15 s of a core.
_MOST_ENCODED = 1.0e9
_PREPARED_VIDEOS = 4
_DRAWS = 4


@dataclass(frozen=True)
class Reading:
    """What reading a sample took, on one core."""

    num_videos: int  # videos that were read
    num_broken: int  # those of them that could not be
    core_seconds: float  # of a core, for a training clip or for all views of a video
    seconds: float  # the same by the clock, with what is waited for the disk
    read_bytes: float | None  # read from files for it; None if the system does not count them


def spread(number: int, total: int) -> list[int]:
    """At most so many places, evenly spaced over a list."""
    return sorted({int(place) for place in np.linspace(0, total - 1, min(number, total)).round()})


def measure(read: Callable[[int], Sample], places: Sequence[int], *, clips_of_sample: int = 1) -> Reading:
    """Read samples one after the other, on one thread, as a loading worker does.

    The first is read once before, so that libraries are loaded. A training set replaces broken videos, and their time
    counts as it does in training.
    """
    with one_thread():
        read(places[0])
        bytes_before, clock, cores = _bytes_read(), time.perf_counter(), time.process_time()
        num_broken = 0
        for place in places:
            sample = read(place)
            num_broken += bool(sample.failures)
            collate([sample])
        clock, cores = time.perf_counter() - clock, time.process_time() - cores
        bytes_after = _bytes_read()
    number = len(places) * clips_of_sample
    num_bytes = None if bytes_before is None or bytes_after is None else (bytes_after - bytes_before) / number
    return Reading(len(places), num_broken, cores / number, clock / number, num_bytes)


def _bytes_read() -> int | None:
    """Bytes that this process has read so far, from the cache or not."""
    try:
        lines = _IO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("rchar:")), None)


# ---- the files -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Files of a list, as far as a sample shows."""

    num_videos: int  # videos that were opened
    mean_bytes: float  # of a video's file
    short_side_px: float  # median
    num_frames: float  # median
    fps: float  # median
    codec: str  # the most frequent


def look_at(records: Sequence[VideoRecord], places: Sequence[int]) -> Files | None:
    """Sizes of the videos at some places of a list; None if none can be opened."""
    infos, sizes = [], []
    for record in (records[place] for place in places):
        try:
            with open_video(record.path) as reader:
                infos.append(reader.info)
            sizes.append(file_state(record.path)[0] or 0)
        except DecodeError:
            continue
    if not infos:
        return None
    return Files(
        len(infos),
        statistics.fmean(sizes),
        statistics.median(min(i.width, i.height) for i in infos),
        statistics.median(i.num_frames for i in infos),
        statistics.median(i.fps for i in infos),
        statistics.mode(i.codec for i in infos),
    )


# ---- measured on the data module's own sets ------------------------------------------------------


def measure_training(datamodule: VideoDataModule, number: int, **clip: Any) -> Reading:
    """Read training clips of videos spread over the list; `clip` changes settings of `ClipConfig`."""
    dataset = datamodule.train_dataset()
    dataset.clip = replace(dataset.clip, **clip)
    places = spread(number, len(dataset))
    return measure(lambda place: dataset[0, place], places, clips_of_sample=dataset.repeats)


def measure_views(loader: Any, number: int) -> Reading:
    """Read all views of videos spread over the set of a loader for validation or test."""
    dataset: ClipDataset = loader.dataset
    return measure(dataset.__getitem__, spread(number, len(dataset)))


def measure_prepared(datamodule: VideoDataModule, files: Files, short_side_px: int) -> tuple[float, float] | None:
    """Encode some of the training videos as `data prepare` does, and read clips of both.

    Returns:
        Time of a clip and bytes of a file, each of prepared ones over that of the same videos as they are; None if
        encoding is much work, or fails.
    """
    pixels = files.num_frames * files.short_side_px**2 * 16 / 9
    number = min(_PREPARED_VIDEOS, int(_MOST_ENCODED // max(1.0, pixels)))
    if number < 1:
        return None
    settings = EncodeSettings(short_side_px, KEY_FRAME_INTERVAL, CRF)
    as_they_are: Sequence[VideoRecord] = datamodule.manifests["train"].records
    as_they_are = [as_they_are[place] for place in spread(number, len(as_they_are))]
    with tempfile.TemporaryDirectory(prefix="video-gn-plan-") as directory:
        prepared = []
        for number, record in enumerate(as_they_are):
            target = Path(directory) / f"{number}.mp4"
            try:
                encode(record.path, target, settings, segment=(record.start_seconds, record.end_seconds))
            except DecodeError as error:
                log.info("prepared files were not measured: %s", error)
                return None
            prepared.append(replace(record, path=str(target), start_seconds=None, end_seconds=None))
        # Several clips of each: what one costs depends on where it begins.
        keys = [(epoch, place) for epoch in range(_DRAWS) for place in range(len(prepared))]
        seconds, sizes = [], []
        for records in (as_they_are, prepared):
            dataset = datamodule.train_dataset()
            dataset.records = records
            seconds.append(measure(lambda n, of=dataset: of[keys[n]], range(len(keys))).core_seconds)  # type: ignore[misc]
            sizes.append(sum(file_state(record.path)[0] or 0 for record in records))
    return seconds[1] / seconds[0], sizes[1] / max(1, sizes[0])
