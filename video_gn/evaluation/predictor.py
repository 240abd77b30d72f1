"""Predicts labels, scores and times of videos from a checkpoint.

import video_gn
predictor = video_gn.load("runs/demo")
print(predictor.predict("video.mp4")["top"])
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_gn.clips import Failure
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig, EvalDataset, Sample
from video_gn.data.loader import WatchedLoader
from video_gn.errors import DecodeError
from video_gn.evaluation.results import video_result
from video_gn.evaluation.scores import check_scores, score_views
from video_gn.lists.records import VideoRecord
from video_gn.models import I3D, for_inference
from video_gn.run.directory import checkpoint_of
from video_gn.weights.build import load_net

log = logging.getLogger(__name__)

DEAD_WORKER_ADVICE = "read it with another --backend; videos in a .jsonl are not labelled again."


class Predictor:
    """A network with its preprocessing and class names; `checkpoint` is the file that it was read from.

    Args:
        net: Network. `net` is then a copy for scores alone, see `video_gn.models.for_inference`.
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
        net: I3D,
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
        self.net = for_inference(net).to(self.device, memory_format=torch.channels_last_3d)
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
        path: str,
        *,
        device: str = "auto",
        num_clips: int | None = None,
        crops: str | None = None,
        labels: Sequence[str] = (),
        layout: str | None = None,
    ) -> Predictor:
        """Rebuild a network and its preprocessing from the file alone.

        Args:
            path: Checkpoint of this package; a run's directory, whose best checkpoint is taken; or a video network's
                weights from any zoo, which are tested as the zoo does, see `video_gn.weights.FORMATS`.
            device: "cpu", "cuda", ...; "auto" takes a GPU if there is one.
            num_clips: Clips of each video; None as the checkpoint was tested.
            crops: "center", "three" or "full"; None as the checkpoint was tested.
            labels: Class names by number; else the checkpoint's own, or Kinetics' for a zoo's 400 classes.
            layout: Layout, if a zoo's file does not say.

        Raises:
            CheckpointError: for a file that is missing, damaged, or not a video network with a classifier.
        """
        checkpoint = checkpoint_of(path)
        if Path(path).is_dir():
            log.info("checkpoint: %s", checkpoint)
        net, about = load_net(checkpoint, layout=layout, labels=labels)
        views = about["views"]
        mode = crops or views["crops"]
        predictor = cls(
            net,
            classes=about.get("classes", ()),
            clip=ClipConfig(**about["clip"]),
            crops=TestCrops(mode, short_side_px=views["short_side_px"], crop_px=views["crop_px"]),
            num_clips=num_clips or views["num_clips"],
            spacing=views["spacing"],
            mean=about["mean"],
            std=about["std"],
            device=("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device,
        )
        predictor.checkpoint = checkpoint
        return predictor

    def predict(self, video: str | os.PathLike[str], *, top_k: int = 5, backend: str = "auto") -> dict[str, Any]:
        """Label one video; for the backend see `video_gn.decoding.open_video`.

        Returns:
            {"path", "num_frames", "fps", "top": [{"label", "score"}], "clips": [{"start_seconds",
            "end_seconds", "top"}]}.

        Raises:
            DecodeError: the video cannot be read.
            CheckpointError: the network's scores are not finite.
        """
        result = next(iter(self.predict_many([os.fspath(video)], top_k=top_k, backend=backend, num_workers=0)))
        if isinstance(result, Failure):
            raise DecodeError(result.path, result.reason)
        return result

    def predict_many(
        self,
        videos: Iterable[str | VideoRecord],
        *,
        top_k: int = 5,
        backend: str = "auto",
        num_workers: int | None = None,
        views_per_forward: int = 10,
    ) -> Iterator[dict[str, Any] | Failure]:
        """Label videos in their order, while workers decode ahead.

        Args:
            videos: Paths, or records of a manifest (whose segments are respected). They may be a stream of any
                length: about two for each worker are taken ahead, and none is kept.
            top_k: Number of labels.
            backend: Decoder, see `video_gn.decoding.open_video`.
            num_workers: Workers that decode; None takes one for each core, at most 8 and, if the number of videos is
                known, at most one for each video.
            views_per_forward: Views that go through the network at a time.

        Yields:
            For each video the result that `predict` describes, or why the video cannot be read.

        Raises:
            CheckpointError: the network's scores are not finite.
        """
        if num_workers is None:
            num_workers = min(8, len(os.sched_getaffinity(0)))
            if isinstance(videos, Sized):
                num_workers = max(0, min(num_workers, len(videos) - 1))
        settings: dict[str, Any] = {"num_clips": self.num_clips, "spacing": self.spacing, "backend": backend}
        dataset = _StreamDataset((), clip=self.clip, crops=self.crops, **settings)
        # The records are the sampler's keys, so they go to the workers one by one.
        keys = ((place, VideoRecord(v, None) if isinstance(v, str) else v) for place, v in enumerate(videos))
        loader = WatchedLoader(
            dataset, sampler=keys, batch_size=None, num_workers=num_workers, advice=DEAD_WORKER_ADVICE
        )
        sample: Sample
        for sample in loader:
            if sample.frames_VTCHW is None:
                yield sample.failures[0]
                continue
            assert sample.note is not None
            scores_VY = self.scores(sample.frames_VTCHW, video=sample.note.path, views_per_forward=views_per_forward)
            yield video_result(sample.note, scores_VY, self.classes, num_crops=self.crops.num_crops, top_k=top_k)

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
        with torch.inference_mode():
            scores_VY = score_views(
                self.net,
                frames_VTCHW.to(self.device),
                mean_C=self.mean,
                std_C=self.std,
                views_per_forward=views_per_forward,
            )
        check_scores(scores_VY, video=video, checkpoint=self.checkpoint)
        return scores_VY.cpu().numpy()


class _StreamDataset(EvalDataset):
    """All views of a video; the key is its number and the record itself."""

    def __getitem__(self, key: tuple[int, VideoRecord]) -> Sample:  # type: ignore[override]
        return self.read(*key)
