"""Accuracy by video: averages the scores of a video's views, then counts the video once.

Shape letters: N videos of one update, V videos of all ranks, Y classes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

# A row's sum of softmax scores is its number of views up to rounding. bfloat16 keeps 8 bits, so a sum
# over classes is off by 0.4% at most; logits, sigmoids or a wrong number of views are off by far more.
_SUM_TOLERANCE = 0.02
# -log of the smallest normal float32 is 87.3. A softmax that underflows to 0 would make the mean
# infinite, and every value that is compared with it later.
_SMALLEST_SCORE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class VideoScores:
    """Scores from all ranks, a row for each video, ascending by id."""

    video_ids: npt.NDArray[np.int64]  # int64 (V,)
    scores: npt.NDArray[np.float64]  # float64 (V, Y), softmax scores averaged over a video's views
    labels: npt.NDArray[np.int64]  # int64 (V,); -1 for a video without a label
    num_views: npt.NDArray[np.int64]  # int64 (V,)


class MultiViewAccuracy(Metric):
    """Top-k accuracy, accuracy by class and loss over videos, each of which counts once.

    Each rank keeps the rows of its own videos, V * (Y + 3) numbers in all. `compute` and `rows` gather
    them, so every rank must call these; ranks may have seen different numbers of videos, or none. Rows
    are sorted by video id and counted in float64 on the CPU, so results are the same bit for bit however
    the videos were divided over ranks and updates.

    A label is among the top k if fewer than k other classes score as high *or higher*: a tie counts
    against the network, so that a network which scores all classes alike has accuracy 0, not that of
    class 0.

    Args:
        num_classes: Y, at least 1.
        top_k: The k of each accuracy "top<k>".
        **kwargs: Arguments of torchmetrics.Metric. `compute_with_cache` is off by default: a rank that
            answers from its cache would leave the others waiting for its rows.

    Raises:
        ValueError: for a number below 1, or a k given twice.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    video_ids: list[torch.Tensor]
    score_sums: list[torch.Tensor]
    labels: list[torch.Tensor]
    num_views: list[torch.Tensor]

    def __init__(self, num_classes: int, *, top_k: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        kwargs.setdefault("compute_with_cache", False)
        super().__init__(**kwargs)
        if operator.index(num_classes) < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes!r}")
        if any(operator.index(k) < 1 for k in top_k) or len(set(top_k)) < len(top_k):
            raise ValueError(f"top_k must be different numbers of at least 1, got {tuple(top_k)!r}")
        self.num_classes = int(num_classes)
        self.top_k = tuple(int(k) for k in top_k)
        for name in ("video_ids", "score_sums", "labels", "num_views"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def update_called(self) -> bool:
        """True: a rank may have no video, of which torchmetrics would warn."""
        return True

    def update(
        self,
        video_ids: torch.Tensor,
        scores_NY: torch.Tensor,
        labels: torch.Tensor,
        num_views: int | torch.Tensor,
    ) -> None:
        """Add videos, with all of their views at once.

        Args:
            video_ids: int64 (N,), at least 0; no video may be given twice, on any rank, which `compute`
                and `rows` check.
            scores_NY: float32 (N, Y), the sum of the softmax scores of a video's views. N may be 0.
            labels: int64 (N,) in [0, Y), or -1 for a video without a label.
            num_views: Number of views of each video, at least 1; or int64 (N,).

        Raises:
            TypeError: for another dtype.
            ValueError: for another shape, or a value out of range, naming the videos: NaN and infinite
                scores, rows that are not sums of softmax scores over `num_views` views.
        """
        if not isinstance(num_views, torch.Tensor):
            num_views = torch.full_like(video_ids, operator.index(num_views))
        num_videos = len(video_ids)
        given = (
            ("video_ids", video_ids, torch.int64, (num_videos,)),
            ("scores_NY", scores_NY, torch.float32, (num_videos, self.num_classes)),
            ("labels", labels, torch.int64, (num_videos,)),
            ("num_views", num_views, torch.int64, (num_videos,)),
        )
        for name, tensor, dtype, shape in given:
            if tensor.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must be of shape {shape}, got {tuple(tensor.shape)}")
        if num_videos == 0:
            return
        video_ids, scores_NY, labels, num_views = (t.detach().to(self.device) for _, t, _, _ in given)
        self._check(video_ids, scores_NY, labels, num_views)
        self.video_ids.append(video_ids)
        self.score_sums.append(scores_NY)
        self.labels.append(labels)
        self.num_views.append(num_views)

    def _check(
        self, video_ids: torch.Tensor, scores_NY: torch.Tensor, labels: torch.Tensor, num_views: torch.Tensor
    ) -> None:
        checks = {
            "video_ids must be at least 0": video_ids >= 0,
            f"labels must be in [0, {self.num_classes}), or -1 for none": (labels >= -1) & (labels < self.num_classes),
            "num_views must be at least 1": num_views >= 1,
            "scores must be finite. Has the training diverged?": scores_NY.isfinite().all(1),
            "scores must be sums of softmax scores over the video's views, at least 0 and adding up to num_views": (
                (scores_NY >= 0).all(1) & ((scores_NY.sum(1) - num_views).abs() <= _SUM_TOLERANCE * num_views)
            ),
        }
        passed = torch.stack(list(checks.values()))
        if passed.all():  # the one wait for the device
            return
        for (rule, _), row in zip(checks.items(), passed, strict=True):
            if not row.all():
                bad = ~row
                raise ValueError(
                    f"{rule}; got video_ids {_brief(video_ids[bad].tolist())} with labels "
                    f"{_brief(labels[bad].tolist())}, num_views {_brief(num_views[bad].tolist())} "
                    f"and scores that add up to {_brief(scores_NY[bad].sum(1).tolist())}"
                )

    def compute(self) -> dict[str, float | int | None]:
        """Results over the videos of all ranks; every rank must call this, and gets the same.

        Returns:
            "top<k>" for each k: a fraction in [0, 1], None with fewer than k classes.
            "mean_class_accuracy": top-1 accuracy averaged over the classes that have a video.
            "nll": mean of -log(averaged score of the label), scores taken as at least 1.2e-38.
            All of these are over the labelled videos, and None without any.
            "num_videos" and "num_labelled": counts.

        Raises:
            ValueError: for a video given twice, naming it.
        """
        rows = self._sorted_rows()
        labelled = rows.labels >= 0
        scores_VY, labels = rows.scores[labelled], rows.labels[labelled]
        results: dict[str, float | int | None] = {f"top{k}": None for k in self.top_k}
        results |= {"mean_class_accuracy": None, "nll": None}
        results |= {"num_videos": len(rows.labels), "num_labelled": len(labels)}
        if len(labels) == 0:
            return results
        own_V = scores_VY[np.arange(len(labels)), labels]
        place_V = (scores_VY >= own_V[:, None]).sum(1) - 1  # other classes that score as high or higher
        for k in self.top_k:
            if k <= self.num_classes:
                results[f"top{k}"] = int((place_V < k).sum()) / len(labels)
        videos_Y = np.bincount(labels, minlength=self.num_classes)
        right_Y = np.bincount(labels[place_V < 1], minlength=self.num_classes)
        present = videos_Y > 0
        results["mean_class_accuracy"] = _mean(right_Y[present] / videos_Y[present])
        results["nll"] = _mean(-np.log(np.maximum(own_V, _SMALLEST_SCORE)))
        return results

    def rows(self) -> VideoScores:
        """The videos of all ranks; every rank must call this, and gets the same.

        Raises:
            ValueError: for a video given twice, naming it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            return self._sorted_rows()

    def _sorted_rows(self) -> VideoScores:
        video_ids, score_sums, labels, num_views = (
            t.cpu().numpy() for t in (self._joined(name) for name in self._defaults)
        )
        ids, counts = np.unique(video_ids, return_counts=True)
        if len(ids) < len(video_ids):
            twice = ids[counts > 1].tolist()
            raise ValueError(
                f"video_ids must be given once each, got {_brief(twice)} more than once. "
                "Use a sampler that neither pads nor repeats, and one update for all views of a video."
            )
        order = np.argsort(video_ids)
        num_views = num_views[order]
        scores_VY = score_sums[order].astype(np.float64) / num_views[:, None]
        return VideoScores(video_ids[order], scores_VY, labels[order], num_views)

    def _joined(self, name: str) -> torch.Tensor:
        """A state as one tensor, with the right shape and dtype also without any row."""
        parts = getattr(self, name)
        if len(parts):
            return parts if isinstance(parts, torch.Tensor) else torch.cat(parts)
        if name == "score_sums":
            return torch.zeros((0, self.num_classes), dtype=torch.float32, device=self.device)
        return torch.zeros(0, dtype=torch.int64, device=self.device)

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., list[torch.Tensor]] = gather_all_tensors,
        process_group: Any | None = None,
    ) -> None:
        # For a rank without rows torchmetrics sends a float tensor of one dimension, which does not fit the
        # (n, Y) or int64 tensors of other ranks: a hang, or garbage.
        group = process_group or self.process_group
        for name in self._defaults:
            setattr(self, name, list(dist_sync_fn(self._joined(name), group=group)))


def _mean(values: npt.NDArray[np.floating[Any]]) -> float:
    # fsum is exact, so the result depends neither on the number of threads nor on the order.
    return math.fsum(values.tolist()) / len(values)


def _brief(values: list[Any]) -> str:
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values[:5])
    return shown if len(values) <= 5 else f"{shown}, ... ({len(values)} in all)"
