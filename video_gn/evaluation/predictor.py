"""Predicts labels, scores and times of videos from a checkpoint.

import video_gn
predictor = video_gn.load("runs/demo")
print(predictor.predict("video.mp4")["top"])
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from video_gn.checks import check_integer
from video_gn.clips import Failure, VideoNote
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig, EvalDataset, Sample
from video_gn.data.layout import read_views
from video_gn.data.loader import WatchedLoader
from video_gn.decoding import VideoReader
from video_gn.decoding.memory import MemoryReader, each_frame
from video_gn.errors import ConfigError
from video_gn.evaluation.prediction import Embedding, Prediction
from video_gn.evaluation.results import video_result
from video_gn.evaluation.scores import check_scores, normalize_clips
from video_gn.export import EngineNet, engine_of, load_engine
from video_gn.lists.records import VideoRecord
from video_gn.models import OwnNet, VideoNet, for_inference, map_views
from video_gn.run.directory import checkpoint_of
from video_gn.weights.build import load_net, load_own

log = logging.getLogger(__name__)

DEAD_WORKER_ADVICE = "read it with another --backend; videos in a .jsonl are not labelled again."

# A path, frames (T, H, W, 3), or an iterator of frames (H, W, 3).
FramesInMemory = np.ndarray | torch.Tensor | Iterable[np.ndarray] | Iterable[torch.Tensor]
Video = str | os.PathLike[str] | FramesInMemory


class Held(NamedTuple):
    """Frames in memory: the predictor that takes them, their reader, and one of what they show."""

    predictor: Predictor
    reader: MemoryReader
    shown: MemoryReader


class Predictor:
    """A network with its preprocessing and class names; `checkpoint` is the file that it was read from.

    Args:
        net: Network. `net` is then a copy for scores alone, see `video_gn.models.for_inference`. Or somebody's own,
            which is not copied, or one that another engine runs, on the CPU.
        classes: Names by number; empty if not known.
        clip: Frames of a clip.
        num_clips: Clips of each video.
        spacing: Rule for their starts, see `video_gn.sampling.test_clips`.
        crops: Crops of each clip.
        mean: Mean of pixels in [0, 1], RGB.
        std: Standard deviation of pixels in [0, 1], RGB.
        device: Device of the network.
    """

    def __init__(
        self,
        net: VideoNet | OwnNet | EngineNet,
        *,
        classes: Sequence[str],
        clip: ClipConfig,
        crops: TestCrops,
        num_clips: int,
        spacing: str,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.checkpoint: Path | None = None
        if isinstance(net, VideoNet):
            net = for_inference(net)
        if not isinstance(net, EngineNet):
            net = net.eval().to(self.device).to(memory_format=torch.channels_last_3d)
        self.net = net
        self.classes = list(classes)
        self.clip = clip
        self.crops = crops
        self.num_clips = num_clips
        self.spacing = spacing
        self.mean = torch.tensor(list(mean), dtype=torch.float32, device=self.device)
        self.std = torch.tensor(list(std), dtype=torch.float32, device=self.device)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        num_clips: int | None = None,
        crops: str | None = None,
        labels: Sequence[str] = (),
        layout: str | None = None,
        engine: str | None = None,
        net: torch.nn.Module | None = None,
    ) -> Self:
        """Rebuild a network and its preprocessing from the file alone, or with somebody's own network.

        Args:
            path: Checkpoint of this package; a run's directory, whose best checkpoint is taken; a video network's
                weights from any zoo, which are tested as the zoo does, see `video_gn.weights.FORMATS`; or an .onnx
                file that `video-gn export` has written.
            device: "cpu", "cuda", ...; "auto" takes a GPU if there is one.
            num_clips: Clips of each video; None as the checkpoint was tested.
            crops: "center", "three" or "full"; None as the checkpoint was tested.
            labels: Class names by number; else the checkpoint's own, or Kinetics' for a zoo's 400 classes.
            layout: Layout, if a zoo's file does not say.
            engine: "torch"; for an .onnx file "onnxruntime" (None), "openvino" or "openvino-bf16".
            net: Network of one's own that the checkpoint is of, built as for its training. It is not copied: it gets
                the checkpoint's weights, all of them, and is put into float32 and eval mode on the device.

        Raises:
            CheckpointError: for a file that is missing, damaged, or not a video network with a classifier, or whose
                weights do not fit `net`.
            ConfigError: for an engine that is not installed or does not read this file.
        """
        checkpoint = checkpoint_of(path)
        if Path(path).is_dir():
            log.info("checkpoint: %s", checkpoint)
        engine = engine_of(checkpoint, engine)
        loaded: VideoNet | OwnNet | EngineNet
        if net is not None and (layout is not None or engine != "torch"):
            raise ConfigError("layout and engine must be left out beside net, and the file must be no .onnx.")
        if engine == "torch":
            if net is not None:
                loaded, about = load_own(checkpoint, net, labels=labels)
            else:
                loaded, about = load_net(checkpoint, layout=layout, labels=labels)
            device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        else:
            loaded, about = load_engine(checkpoint, engine, device=device, layout=layout, labels=labels)
            device = "cpu"
        views = about["views"]
        mode = crops or views["crops"]
        predictor = cls(
            loaded,
            classes=about.get("classes", ()),
            clip=ClipConfig(**about["clip"]),
            crops=TestCrops(mode, short_side_px=views["short_side_px"], crop_px=views["crop_px"]),
            num_clips=num_clips or views["num_clips"],
            spacing=views["spacing"],
            mean=about["mean"],
            std=about["std"],
            device=device,
        )
        predictor.checkpoint = checkpoint
        return predictor

    def predict(self, video: Video, *, fps: float | None = None, top_k: int = 5, backend: str = "auto") -> Prediction:
        """Label one video.

        Args:
            video: Path; or frames in memory, RGB, uint8: an array or tensor (T, H, W, 3), or an iterator of (H, W, 3),
                which is read to its end, since clips are spread over the whole video. Of its frames only the crops that
                the network sees are kept. Frames are not scaled as `clip.decode_short_side_px` asks a decoder to, but
                as pictures of a frame folder are.
            fps: Frames per second of frames in memory; a file has its own.
            top_k: Number of labels.
            backend: Decoder of a file, see `video_gn.decoding.open_video`.

        Returns:
            {"path", "num_frames", "fps", "top": [{"label", "score"}], "clips": [{"start_seconds",
            "end_seconds", "top"}]}. The path is "<frames>" for frames in memory.

        Raises:
            DecodeError: the video cannot be read.
            CheckpointError: the network's scores are not finite.
            TypeError: the frames are not uint8.
            ValueError: their shape or their rate is wrong, or there are none.
        """
        frames_VTCHW, note, held = self._read(video, fps=fps, backend=backend)
        prediction = self._prediction(frames_VTCHW, note, top_k=top_k)
        if held is not None:
            prediction.keep_pictures(held.shown)
        return prediction

    def embed(self, video: Video, *, fps: float | None = None, backend: str = "auto") -> Embedding:
        """The features of one video before the classifier; arguments and errors as `predict`."""
        frames_VTCHW, note, _ = self._read(video, fps=fps, backend=backend)
        return self._embedding(frames_VTCHW, note)

    def predict_many(
        self,
        videos: Iterable[str | os.PathLike[str] | VideoRecord],
        *,
        top_k: int = 5,
        backend: str = "auto",
        num_workers: int | None = None,
        views_per_forward: int = 10,
        embed: bool = False,
    ) -> Iterator[Prediction | Failure]:
        """Label videos in their order, while workers decode ahead.

        Args:
            videos: Paths, or records of a manifest (whose segments are respected). They may be a stream of any
                length: about two for each worker are taken ahead, and none is kept.
            top_k: Number of labels.
            backend: Decoder, see `video_gn.decoding.open_video`.
            num_workers: Workers that decode; None takes one for each core, at most 8 and, if the number of videos is
                known, at most one for each video.
            views_per_forward: Views that go through the network at a time.
            embed: Whether to set `Prediction.embedding` too, from the same pass: what `embed` gives.

        Yields:
            For each video the result that `predict` describes, or why the video cannot be read.

        Raises:
            CheckpointError: the network's scores are not finite.
        """
        settings: dict[str, Any] = {"top_k": top_k, "views_per_forward": views_per_forward, "embed": embed}
        for found in self._read_many(videos, backend=backend, num_workers=num_workers):
            yield found if isinstance(found, Failure) else self._prediction(*found, **settings)

    def embed_many(
        self,
        videos: Iterable[str | os.PathLike[str] | VideoRecord],
        *,
        backend: str = "auto",
        num_workers: int | None = None,
        views_per_forward: int = 10,
    ) -> Iterator[Embedding | Failure]:
        """What `embed` gives, or why a video cannot be read, for many videos; arguments as `predict_many`."""
        for found in self._read_many(videos, backend=backend, num_workers=num_workers):
            if isinstance(found, Failure):
                yield found
            else:
                yield self._embedding(*found, views_per_forward=views_per_forward)

    def scores(
        self, frames_VTCHW: torch.Tensor, *, video: str = "the frames", views_per_forward: int = 10
    ) -> np.ndarray:
        """Softmax scores of the views of one video, float32 (V, Y).

        Args:
            frames_VTCHW: uint8 views, as `crops.apply` gives them.
            video: Name in the error.
            views_per_forward: Views that go through the network at a time.

        Raises:
            CheckpointError: the scores are not finite.
        """
        return self._map(self.net.forward, frames_VTCHW, video, views_per_forward)

    def features(
        self, frames_VTCHW: torch.Tensor, *, video: str = "the frames", views_per_forward: int = 10
    ) -> np.ndarray:
        """The classifier's inputs for the views of one video, float32 (V, C); arguments and errors as `scores`."""
        return self._map(self.net.embed, frames_VTCHW, video, views_per_forward)

    def _map(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        frames_VTCHW: torch.Tensor,
        video: str,
        views_per_forward: int,
    ) -> np.ndarray:
        def of_pixels(chunk_NTCHW: torch.Tensor) -> torch.Tensor:
            is_normalized = isinstance(self.net, EngineNet)  # by the engine
            return function(chunk_NTCHW if is_normalized else normalize_clips(chunk_NTCHW, self.mean, self.std))

        with torch.inference_mode():
            found = map_views(of_pixels, frames_VTCHW.to(self.device), views_per_forward=views_per_forward)
        check_scores(found, video=video, checkpoint=self.checkpoint)
        return found.cpu().numpy()

    def _prediction(
        self,
        frames_VTCHW: torch.Tensor,
        note: VideoNote,
        *,
        top_k: int,
        views_per_forward: int = 10,
        embed: bool = False,
    ) -> Prediction:
        check_integer("top_k", top_k)
        embedding = None
        if embed:
            both = self.net.scores_and_embedding
            both_VX = self._map(lambda x: torch.cat(both(x), 1), frames_VTCHW, note.path, views_per_forward)
            scores_VY, features_VC = np.split(both_VX, [self.net.num_classes], axis=1)
            embedding = self._pooled(features_VC, note)
        else:
            scores_VY = self.scores(frames_VTCHW, video=note.path, views_per_forward=views_per_forward)
        result = video_result(note, scores_VY, self.classes, num_crops=self.crops.num_crops, top_k=top_k)
        prediction = Prediction(result)
        prediction.embedding = embedding
        return prediction

    def _embedding(self, frames_VTCHW: torch.Tensor, note: VideoNote, *, views_per_forward: int = 10) -> Embedding:
        return self._pooled(self.features(frames_VTCHW, video=note.path, views_per_forward=views_per_forward), note)

    def _pooled(self, features_VC: np.ndarray, note: VideoNote) -> Embedding:
        per_clip = features_VC.reshape(-1, self.crops.num_crops, features_VC.shape[1]).mean(1, dtype=np.float64)
        video, clips = per_clip.mean(0).astype(np.float32), per_clip.astype(np.float32)
        return Embedding(note.path, video, clips, note.clip_seconds)

    def _dataset(self, backend: str) -> _StreamDataset:
        settings: dict[str, Any] = {"num_clips": self.num_clips, "spacing": self.spacing, "backend": backend}
        return _StreamDataset((), clip=self.clip, crops=self.crops, **settings)

    def _read_many(
        self, videos: Iterable[str | os.PathLike[str] | VideoRecord], *, backend: str, num_workers: int | None
    ) -> Iterator[tuple[torch.Tensor, VideoNote] | Failure]:
        """All views of each video, or why it cannot be read."""
        if num_workers is None:
            num_workers = min(8, len(os.sched_getaffinity(0)))
            if isinstance(videos, Sized):
                num_workers = max(0, min(num_workers, len(videos) - 1))
        # The records are the sampler's keys, so they go to the workers one by one.
        loader: dict[str, Any] = {
            "sampler": enumerate(as_records(videos)),
            "batch_size": None,
            "advice": DEAD_WORKER_ADVICE,
        }
        for sample in WatchedLoader(self._dataset(backend), num_workers=num_workers, **loader):
            assert sample.failures or (sample.frames_VTCHW is not None and sample.note is not None)
            yield sample.failures[0] if sample.failures else (sample.frames_VTCHW, sample.note)

    def _read(self, video: Video, *, fps: float | None, backend: str) -> tuple[torch.Tensor, VideoNote, Held | None]:
        """All views of one video, and what is held of it if it is in memory."""
        opened: VideoRecord | VideoReader
        if isinstance(video, str | os.PathLike):
            check_file_rate(video, fps)
            held, dataset, opened = None, self._dataset(backend), VideoRecord(os.fspath(video), None)
        else:
            held = self.hold(video, fps)
            dataset, opened = held.predictor._dataset("auto"), held.reader
        frames_VTCHW, note = dataset.read_by(opened, lambda r, i, _: read_views(r, i, dataset.crops.apply))
        return frames_VTCHW, note, held

    def hold(self, video: FramesInMemory, fps: float | None) -> Held:
        """Frames in memory, to be read like a file; of an iterator's frames their crops."""
        short_side_px = self.clip.decode_short_side_px
        if isinstance(video, np.ndarray | torch.Tensor):
            reader = MemoryReader(video, fps, short_side_px=short_side_px)
            return Held(self, reader, reader)
        first = video[0] if isinstance(video, Sequence) and len(video) else None
        if not isinstance(video, Iterable) or isinstance(first, str | os.PathLike | int):  # bytes have ints
            raise TypeError(
                f"video must be a path, or frames in an array, a tensor or an iterator, got {type(video).__name__}. "
                "Several paths are for predict_many and embed_many."
            )
        # A clip's frames are cropped each by itself: one that is cropped at once need not be kept whole.
        crops_NPHWC = np.stack(
            [
                self.crops.apply(frame.frames_at([0])).permute(0, 1, 3, 4, 2)[:, 0].contiguous().numpy()
                for frame in each_frame(video, fps, short_side_px=short_side_px)
            ]
        )
        predictor = copy.copy(self)
        predictor.crops = _CroppedBefore(self.crops.crops, self.crops.short_side_px, self.crops.crop_px)
        reader = MemoryReader(crops_NPHWC.reshape(len(crops_NPHWC), -1, *crops_NPHWC.shape[3:]), fps)
        return Held(predictor, reader, MemoryReader(crops_NPHWC[:, self.crops.num_crops // 2], fps))


def as_records(videos: Iterable[str | os.PathLike[str] | VideoRecord]) -> Iterator[VideoRecord]:
    """Records of what may be paths alone; a TypeError for a single path, whose letters would be taken for paths."""
    if isinstance(videos, str | os.PathLike):
        raise TypeError(f"videos must be several paths, got {os.fspath(videos)!r} alone. Put it into a list.")
    return (v if isinstance(v, VideoRecord) else VideoRecord(os.fspath(v), None) for v in videos)


def check_file_rate(path: str | os.PathLike[str], fps: float | None) -> None:
    """Raise ValueError for a file with a rate."""
    if fps is not None:
        raise ValueError(f"fps must be left out for a file, which has its own, got {fps!r} for {path}.")


class _CroppedBefore(TestCrops):
    """Crops of pictures in which all crops of a frame lie one below the other."""

    def apply(self, frames_THWC: torch.Tensor) -> torch.Tensor:
        """uint8 (T, P * h, w, 3) -> (P, T, 3, h, w)."""
        return frames_THWC.unflatten(1, (self.num_crops, -1)).permute(1, 0, 4, 2, 3)


class _StreamDataset(EvalDataset):
    """All views of a video; the key is its number and the record itself."""

    def __getitem__(self, key: tuple[int, VideoRecord]) -> Sample:  # type: ignore[override]
        return self.read(*key)
