"""Data sets: from a record of a manifest to its clips, by sampling, decoding and cropping.

Shape letters: N videos, K clips, P crops of a clip, V = K * P views, T frames, C channels, H, W.

A training sample is a function of (seed, epoch, record) alone, so workers hold no state and a run
can stop anywhere and resume bit for bit. All views of a test video come from one pass over its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from video_gn import sampling
from video_gn.clips import Failure, VideoNote
from video_gn.data.crops import TestCrops
from video_gn.data.layout import Sample, read_repeats, read_views
from video_gn.data.loader import ReadingBoard
from video_gn.decoding import VideoReader, choose_backend, open_video
from video_gn.errors import DecodeError, FrameCountError, RunError
from video_gn.lists.records import VideoRecord

# (number of frames, fps) -> int64 (K, T), the frames of each clip.
Draw = Callable[[int, float], np.ndarray]
# (reader, int64 (K, T)) -> uint8 (V, T, 3, h, w), decoded and cropped.
Read = Callable[[VideoReader, np.ndarray], torch.Tensor]
# The same, told also the first frame of the record's part of the video, and one behind the last.
ReadPart = Callable[[VideoReader, np.ndarray, tuple[int, int]], torch.Tensor]
# Other records drawn for one that cannot be decoded, before giving up: with the default limit of 5% broken videos,
# 10 failures in a row are a broken disk, not broken videos.
_MAX_REPLACEMENTS = 10


@dataclass(frozen=True)
class ClipConfig:
    """Which frames make a clip.

    Args:
        num_frames: Frames of a clip, T.
        stride: Distance between two of them, in frames of the video.
        target_fps: Frame rate to which videos of other rates are resampled by index; None takes frames unchanged.
        past_end: Replacement of frames past the end of a video: its beginning again ("loop"), or its last frame
            ("last").
        decode_short_side_px: Even short side, to which the decoder scales larger frames down, in training and tests
            alike, before they are resized and cropped; None decodes at full size. Saves time if videos are much larger
            than the crops. With the back ends "auto" and "pyav".
    """

    num_frames: int = 32
    stride: int = 2
    target_fps: float | None = None
    past_end: Literal["loop", "last"] = "loop"
    decode_short_side_px: int | None = None

    def timing(self, fps: float) -> dict[str, Any]:
        """Arguments of `sampling`'s functions for a video of a frame rate."""
        return {
            "num_frames": self.num_frames,
            "stride": self.stride,
            "past_end": self.past_end,
            "fps": fps,
            "target_fps": self.target_fps,
        }

    def describe(self) -> dict[str, Any]:
        """As a checkpoint stores it: without settings that are off, which earlier versions do not know."""
        return {k: v for k, v in asdict(self).items() if k != "decode_short_side_px" or v is not None}


class ClipTransform(Protocol):
    """Transform that is drawn for a video and applied to all its frames alike: `TrainTransform`, `Augmentation`."""

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Any:
        """Draw parameters for frames of a size."""
        ...

    def apply(self, frames_THWC: torch.Tensor, params: Any) -> torch.Tensor:
        """uint8 (T, H, W, 3) to uint8 (T, 3, h, w)."""
        ...


class ClipDataset(Dataset[Sample]):
    """Base of the training and the evaluation set: opens a record and reads its clips.

    A record's place in `records` is its video id; `backend` and `num_threads` are those of `open_video`.
    """

    def __init__(
        self, records: Sequence[VideoRecord], *, clip: ClipConfig, backend: str = "auto", num_threads: int = 1
    ) -> None:
        # A wrong name is an error here, not in a worker.
        choose_backend(backend, scales=clip.decode_short_side_px is not None)
        self.records = records
        self.clip = clip
        self.backend = backend
        self.num_threads = num_threads
        self.board: ReadingBoard | None = None

    def __len__(self) -> int:
        return len(self.records)

    def _read(self, record: VideoRecord, draw: Draw, read: Read) -> tuple[torch.Tensor, VideoNote]:
        """Read the clips of a record.

        `draw` is called again if fewer frames decode than the packets promised: it must be a function of its arguments.

        Raises:
            DecodeError: for a video that cannot be read twice in a row: a file system may have been away for a moment.
        """
        if record.error:
            raise DecodeError(record.path, record.error)  # a scan found it: the file is not opened
        if self.board is not None:
            self.board.write(record.path)
        try:
            return self._read_once(record, draw, read)
        except DecodeError:
            return self._read_once(record, draw, read)
        finally:
            if self.board is not None:
                self.board.write("")

    def _read_once(self, record: VideoRecord, draw: Draw, read: Read) -> tuple[torch.Tensor, VideoNote]:
        with open_video(
            record.path,
            backend=self.backend,
            num_threads=self.num_threads,
            short_side_px=self.clip.decode_short_side_px,
        ) as reader:
            return self._read_open(reader, record, draw, read)

    def _read_open(
        self, reader: VideoReader, record: VideoRecord, draw: Draw, read: Read
    ) -> tuple[torch.Tensor, VideoNote]:
        for attempt in (0, 1):
            first, stop = self._segment(reader, record)
            indices_KT = draw(stop - first, reader.info.fps) + first
            try:
                frames = read(reader, indices_KT)
                break
            except FrameCountError:
                if attempt:
                    raise
        seconds = reader.frame_seconds
        spans = tuple((float(seconds[row[0]]), float(seconds[row.max()]) + 1 / reader.info.fps) for row in indices_KT)
        return frames, VideoNote(record.path, stop - first, reader.info.fps, spans)

    @staticmethod
    def _segment(reader: VideoReader, record: VideoRecord) -> tuple[int, int]:
        if record.start_seconds is None and record.end_seconds is None:
            return 0, reader.info.num_frames
        start = 0.0 if record.start_seconds is None else record.start_seconds
        end = float("inf") if record.end_seconds is None else record.end_seconds
        try:
            return sampling.segment_frames(reader.frame_seconds, start, end)
        except ValueError as error:
            raise DecodeError(record.path, f"{record.source}: {error}") from error


class TrainDataset(ClipDataset):
    """One random, augmented clip for a key (epoch, index), or `repeats` from one decoding of the video.

    Each of those has its own frames, crop and augmentation. Other arguments as `ClipDataset`.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        *,
        clip: ClipConfig,
        transform: ClipTransform,
        seed: int,
        backend: str = "auto",
        repeats: int = 1,
    ) -> None:
        super().__init__(records, clip=clip, backend=backend)
        self.repeats = repeats
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        failures: list[Failure] = []
        replacement = np.random.default_rng([self.seed, epoch, index, 1])
        for attempt in range(1 + _MAX_REPLACEMENTS):
            source = index if attempt == 0 else int(replacement.integers(len(self.records)))
            record = self.records[source]
            try:
                frames, note = self._read_random(record, [self.seed, epoch, index, 2 + attempt])
            except DecodeError as error:
                failures.append(Failure(source, record.path, error.reason))
                continue
            return Sample(frames, _label(record), source, tuple(failures), note)
        raise RunError(
            f"{failures[0].path} could not be read ({failures[0].reason}), nor could any of {_MAX_REPLACEMENTS} videos "
            f"drawn in its place ({', '.join(f.path for f in failures[1:4])}, ...). Is the file system there?"
        )

    def _read_random(self, record: VideoRecord, entropy: list[int]) -> tuple[torch.Tensor, VideoNote]:
        # The first clip is the one without repeats.
        tails = [[], *([r] for r in range(1, self.repeats))]

        def draw(num_frames: int, fps: float) -> np.ndarray:
            rngs = (np.random.default_rng([*entropy, 0, *tail]) for tail in tails)
            return np.stack([sampling.train_clip(num_frames, rng=rng, **self.clip.timing(fps)) for rng in rngs])

        def crop(tail: list[int], height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
            params = self.transform.draw(np.random.default_rng([*entropy, 1, *tail]), height, width)
            return lambda frames_THWC: self.transform.apply(frames_THWC, params)[None]

        def read(reader: VideoReader, indices_KT: np.ndarray) -> torch.Tensor:
            crops = [crop(tail, reader.info.height, reader.info.width) for tail in tails]
            return read_repeats(reader, indices_KT, crops) if crops[1:] else read_views(reader, indices_KT, crops[0])

        return self._read(record, draw, read)


class EvalDataset(ClipDataset):
    """All views of the video at a place; a video that cannot be read is a failure, never replaced.

    The key -1 gives an empty sample, for a process without any video. With `num_clips` None, the one clip is in the
    video's middle; `spacing` is a rule of `sampling.test_clips`. Other arguments as `ClipDataset`.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        *,
        clip: ClipConfig,
        crops: TestCrops,
        num_clips: int | None = 10,
        spacing: str = "nonlocal",
        backend: str = "auto",
        num_threads: int = 1,
    ) -> None:
        super().__init__(records, clip=clip, backend=backend, num_threads=num_threads)
        self.crops = crops
        self.num_clips = num_clips
        self.spacing = spacing

    def __getitem__(self, index: int) -> Sample:
        return Sample(None, -1, -1) if index < 0 else self.read(index, self.records[index])

    def read(self, index: int, record: VideoRecord) -> Sample:
        """All views of a record, whether or not it is one of `records`; `index` is its place."""
        return _sample_or_failure(
            index, record, lambda: self._read(record, self._draw, lambda r, i: read_views(r, i, self.crops.apply))
        )

    def read_by(self, video: VideoRecord | VideoReader, read: ReadPart) -> tuple[torch.Tensor, VideoNote]:
        """All views of a record, or of an open video, as `read` gives them.

        It is called again if fewer frames decode than the packets promised, and once more for a record that cannot be
        read.

        Raises:
            DecodeError: for a video that cannot be read.
        """
        record = video if isinstance(video, VideoRecord) else VideoRecord(video.info.path, None)

        def read_part(reader: VideoReader, indices_KT: np.ndarray) -> torch.Tensor:
            return read(reader, indices_KT, self._segment(reader, record))

        if isinstance(video, VideoRecord):
            return self._read(record, self._draw, read_part)
        return self._read_open(video, record, self._draw, read_part)

    def _draw(self, num_frames: int, fps: float) -> np.ndarray:
        timing = self.clip.timing(fps)
        if self.num_clips is None:
            return sampling.center_clip(num_frames, **timing)[None]
        return sampling.test_clips(num_frames, num_clips=self.num_clips, spacing=self.spacing, **timing)


class RandomEvalDataset(TrainDataset):
    """One random, augmented clip of each video for validation, the same in every epoch (the paper's Figure 7)."""

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if index < 0:
            return Sample(None, -1, -1)
        record = self.records[index]
        # An epoch that training never reaches, so that no validation clip is drawn like a training clip.
        entropy = [self.seed, 2**32 - 1, index, 2]
        return _sample_or_failure(index, record, lambda: self._read_random(record, entropy))


def _label(record: VideoRecord) -> int:
    return -1 if record.label is None else record.label


def _sample_or_failure(index: int, record: VideoRecord, read: Callable[[], tuple[torch.Tensor, VideoNote]]) -> Sample:
    try:
        frames, note = read()
    except DecodeError as error:
        return Sample(None, _label(record), index, (Failure(index, record.path, error.reason),))
    return Sample(frames, _label(record), index, (), note)
