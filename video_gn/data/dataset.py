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

    Args:
        records: the manifest's records; a record's place is its video id.
        clip: which frames make a clip.
        backend: a name that `open_video` knows.
    """

    def __init__(self, records: Sequence[VideoRecord], *, clip: ClipConfig, backend: str = "auto") -> None:
        # A wrong name is an error here, not in a worker.
        choose_backend(backend, scales=clip.decode_short_side_px is not None)
        self.records = records
        self.clip = clip
        self.backend = backend
        self.board: ReadingBoard | None = None

    def __len__(self) -> int:
        return len(self.records)

    def _read(
        self,
        record: VideoRecord,
        draw: Callable[[int, float], np.ndarray],
        make_crop: Callable[[int, int], Any],
        read: Callable[[VideoReader, np.ndarray, Any], torch.Tensor] = read_views,
    ) -> tuple[torch.Tensor, VideoNote]:
        """Read the clips of a record.

        `draw` makes (number of frames, fps) into int64 (K, T), and the same for the same arguments: it is called again
        if fewer frames decode than the packets promised. `make_crop` makes (height, width) into the third argument of
        `read`, which is `read_views` or `read_repeats`.

        Raises:
            DecodeError: for a video that cannot be read twice in a row: a file system may have been away for a moment.
        """
        if record.error:
            raise DecodeError(record.path, record.error)  # a scan found it: the file is not opened
        if self.board is not None:
            self.board.write(record.path)
        try:
            return self._read_once(record, draw, make_crop, read)
        except DecodeError:
            return self._read_once(record, draw, make_crop, read)
        finally:
            if self.board is not None:
                self.board.write("")

    def _read_once(
        self,
        record: VideoRecord,
        draw: Callable[[int, float], np.ndarray],
        make_crop: Callable[[int, int], Any],
        read: Callable[[VideoReader, np.ndarray, Any], torch.Tensor],
    ) -> tuple[torch.Tensor, VideoNote]:
        with open_video(record.path, backend=self.backend, short_side_px=self.clip.decode_short_side_px) as reader:
            for attempt in (0, 1):
                first, stop = self._segment(reader, record)
                indices_KT = draw(stop - first, reader.info.fps) + first
                try:
                    frames = read(reader, indices_KT, make_crop(reader.info.height, reader.info.width))
                    break
                except FrameCountError:
                    if attempt:
                        raise
            seconds = reader.frame_seconds
            spans = tuple(
                (float(seconds[row[0]]), float(seconds[row.max()]) + 1 / reader.info.fps) for row in indices_KT
            )
            return frames, VideoNote(record.path, stop - first, reader.info.fps, spans)

    @staticmethod
    def _segment(reader: VideoReader, record: VideoRecord) -> tuple[int, int]:
        if record.start_seconds is None and record.end_seconds is None:
            return 0, reader.info.num_frames
        seconds = reader.frame_seconds
        start = 0.0 if record.start_seconds is None else record.start_seconds
        end = float("inf") if record.end_seconds is None else record.end_seconds
        try:
            return sampling.segment_frames(seconds, start, end)
        except ValueError as error:
            raise DecodeError(record.path, f"{record.source}: {error}") from error


class TrainDataset(ClipDataset):
    """One random, augmented clip for a key (epoch, index), or several from one decoding of the video.

    Args:
        records: the training records.
        clip: which frames make a clip.
        transform: the random crop and flip, or a whole `Augmentation`.
        seed: seed of the run.
        backend: a name that `open_video` knows.
        repeats: clips of a video, each with its own frames, crop and augmentation.
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
            label = -1 if record.label is None else record.label
            return Sample(frames, label, source, tuple(failures), note)
        raise RunError(
            f"{failures[0].path} could not be read ({failures[0].reason}), nor could any of {_MAX_REPLACEMENTS} videos "
            f"drawn in its place ({', '.join(f.path for f in failures[1:4])}, ...). Is the file system there?"
        )

    def _read_random(self, record: VideoRecord, entropy: list[int]) -> tuple[torch.Tensor, VideoNote]:
        # The first clip is the one without repeats.
        tails = [[], *([r] for r in range(1, self.repeats))]

        def draw(num_frames: int, fps: float) -> np.ndarray:
            clips = [
                sampling.train_clip(
                    num_frames,
                    num_frames=self.clip.num_frames,
                    stride=self.clip.stride,
                    rng=np.random.default_rng([*entropy, 0, *tail]),
                    past_end=self.clip.past_end,
                    fps=fps,
                    target_fps=self.clip.target_fps,
                )
                for tail in tails
            ]
            return np.stack(clips)

        def make_crop(height: int, width: int, tail: Sequence[int] = ()) -> Callable[[torch.Tensor], torch.Tensor]:
            params = self.transform.draw(np.random.default_rng([*entropy, 1, *tail]), height, width)
            return lambda frames: self.transform.apply(frames, params)[None]

        if self.repeats == 1:
            return self._read(record, draw, make_crop)
        return self._read(record, draw, lambda h, w: [make_crop(h, w, tail) for tail in tails], read_repeats)


class EvalDataset(ClipDataset):
    """All views of the video at a place; a video that cannot be read is a failure, never replaced.

    The key -1 gives an empty sample, for a process without any video.

    Args:
        records: the records to evaluate.
        clip: which frames make a clip.
        crops: the crops of each clip.
        num_clips: clips of a video; None for one in its middle.
        spacing: rule for the clips' starts, see `sampling.test_clips`.
        backend: a name that `open_video` knows.
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
    ) -> None:
        super().__init__(records, clip=clip, backend=backend)
        self.crops = crops
        self.num_clips = num_clips
        self.spacing = spacing

    @property
    def num_views(self) -> int:
        """Clips times crops of a video."""
        return (self.num_clips or 1) * self.crops.num_crops

    def __getitem__(self, index: int) -> Sample:
        return Sample(None, -1, -1) if index < 0 else self.read(index, self.records[index])

    def read(self, index: int, record: VideoRecord) -> Sample:
        """All views of a record, whether or not it is one of `records`; `index` is its place."""
        label = -1 if record.label is None else record.label
        try:
            frames, note = self._read(record, self._draw, lambda height, width: self.crops.apply)
        except DecodeError as error:
            return Sample(None, label, index, (Failure(index, record.path, error.reason),))
        return Sample(frames, label, index, (), note)

    def _draw(self, num_frames: int, fps: float) -> np.ndarray:
        clip = self.clip
        if self.num_clips is None:
            return sampling.center_clip(
                num_frames,
                num_frames=clip.num_frames,
                stride=clip.stride,
                past_end=clip.past_end,
                fps=fps,
                target_fps=clip.target_fps,
            )[None]
        return sampling.test_clips(
            num_frames,
            num_clips=self.num_clips,
            num_frames=clip.num_frames,
            stride=clip.stride,
            spacing=self.spacing,
            past_end=clip.past_end,
            fps=fps,
            target_fps=clip.target_fps,
        )


class RandomEvalDataset(TrainDataset):
    """One random, augmented clip of each video for validation, the same in every epoch (the paper's Figure 7)."""

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if index < 0:
            return Sample(None, -1, -1)
        record = self.records[index]
        label = -1 if record.label is None else record.label
        try:
            # An epoch that training never reaches, so that no validation clip is drawn like a training clip.
            frames, note = self._read_random(record, [self.seed, 2**32 - 1, index, 2])
        except DecodeError as error:
            return Sample(None, label, index, (Failure(index, record.path, error.reason),))
        return Sample(frames, label, index, (), note)
