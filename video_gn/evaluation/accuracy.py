"""Accuracy by video: averages the scores of a video's views, then counts the video once.

Shape letters: N videos of one update, V videos of all ranks, Y classes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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
_NUM_BEST = 5  # classes of a video that predictions.csv names


@dataclass(frozen=True)
class VideoRows:
    """The videos of all ranks, a row for each, ascending by id; scores are softmax scores averaged over its views."""

    video_ids: npt.NDArray[np.int64]  # int64 (V,)
    labels: npt.NDArray[np.int64]  # int64 (V,); -1 for a video without a label
    num_views: npt.NDArray[np.int64]  # int64 (V,)
    best: npt.NDArray[np.int64]  # int64 (V, min(5, Y)), classes of the highest scores; of equal ones the lower first
    best_scores: npt.NDArray[np.float64]  # float64 (V,), the highest score
    label_scores: npt.NDArray[np.float64]  # float64 (V,), the label's score; 0 without a label
    label_places: npt.NDArray[np.int64]  # int64 (V,), other classes that score as high as the label or higher


class MultiViewAccuracy(Metric):
    """Top-k accuracy, accuracy by class and loss over videos, each of which counts once.

    Each rank keeps of its own videos what `VideoRows` has, 11 numbers a video and not all its scores. `compute`
    and `rows` gather them, so every rank must call these; ranks may have seen different numbers of videos, or
    none. A row is a function of its video's scores, in float64, and rows are sorted by video id and counted on
    the CPU, so results are the same bit for bit however the videos were divided over ranks and updates.

    A label is among the top k if fewer than k other classes score as high *or higher*: a tie counts
    against the network, so that a network which scores all classes alike has accuracy 0, not that of
    class 0.

    Args:
        num_classes: Y, at least 1.
        top_k: The k of each accuracy "top<k>".
        **kwargs: Arguments of torchmetrics.Metric. `compute_with_cache` is off by default: a rank that
            answers from its cache would leave the others waiting for its rows.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, num_classes: int, *, top_k: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        kwargs.setdefault("compute_with_cache", False)
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.top_k = tuple(top_k)
        for field in fields(VideoRows):
            self.add_state(field.name, default=[], dist_reduce_fx="cat")

    @property
    def update_called(self) -> bool:
        """True: a rank may have no video, of which torchmetrics would warn."""
        return True

    def update(
        self, video_ids: torch.Tensor, scores_NY: torch.Tensor, labels: torch.Tensor, num_views: int | torch.Tensor
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
        scores_NY = scores_NY.double() / num_views[:, None]
        ordered, classes = scores_NY.sort(descending=True, stable=True)
        own_N = scores_NY.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        rows = {
            "video_ids": video_ids,
            "labels": labels,
            "num_views": num_views,
            "best": classes[:, :_NUM_BEST].clone(),  # a slice would keep all classes in memory
            "best_scores": ordered[:, 0].clone(),
            "label_scores": own_N.where(labels >= 0, 0),
            "label_places": (scores_NY >= own_N[:, None]).sum(1) - 1,
        }
        for name, values in rows.items():
            getattr(self, name).append(values)

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
            "num_videos" and "num_labelled": counts. A video given twice is a ValueError that names it.
        """
        rows = self._sorted_rows()
        labelled = rows.labels >= 0
        labels, own_V, place_V = rows.labels[labelled], rows.label_scores[labelled], rows.label_places[labelled]
        results: dict[str, float | int | None] = {f"top{k}": None for k in self.top_k}
        results |= {"mean_class_accuracy": None, "nll": None}
        results |= {"num_videos": len(rows.labels), "num_labelled": len(labels)}
        if len(labels) == 0:
            return results
        for k in self.top_k:
            if k <= self.num_classes:
                results[f"top{k}"] = int((place_V < k).sum()) / len(labels)
        videos_Y = np.bincount(labels, minlength=self.num_classes)
        right_Y = np.bincount(labels[place_V < 1], minlength=self.num_classes)
        present = videos_Y > 0
        results["mean_class_accuracy"] = _mean(right_Y[present] / videos_Y[present])
        results["nll"] = _mean(-np.log(np.maximum(own_V, _SMALLEST_SCORE)))
        return results

    def rows(self) -> VideoRows:
        """The videos of all ranks; each rank must call this, and gets the same, or a ValueError for one given twice."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            return self._sorted_rows()

    def _sorted_rows(self) -> VideoRows:
        columns = {name: self._joined(name).cpu().numpy() for name in self._defaults}
        video_ids = columns["video_ids"]
        ids, counts = np.unique(video_ids, return_counts=True)
        if len(ids) < len(video_ids):
            twice = ids[counts > 1].tolist()
            raise ValueError(
                f"video_ids must be given once each, got {_brief(twice)} more than once. "
                "Use a sampler that neither pads nor repeats, and one update for all views of a video."
            )
        order = np.argsort(video_ids)
        return VideoRows(**{name: column[order] for name, column in columns.items()})

    def _joined(self, name: str) -> torch.Tensor:
        """A state as one tensor, with the right shape and dtype also without any row."""
        parts = getattr(self, name)
        if len(parts):
            return parts if isinstance(parts, torch.Tensor) else torch.cat(parts)
        shape = (0, min(_NUM_BEST, self.num_classes)) if name == "best" else (0,)
        return torch.zeros(shape, dtype=torch.float64 if name.endswith("_scores") else torch.int64, device=self.device)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[torch.Tensor]] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # For a rank without rows torchmetrics sends a float tensor of one dimension, which does not fit the
        # (n, 5) or int64 tensors of other ranks: a hang, or garbage.
        group = process_group or self.process_group
        for name in self._defaults:
            setattr(self, name, list(dist_sync_fn(self._joined(name), group=group)))


def _mean(values: npt.NDArray[np.floating[Any]]) -> float:
    # fsum is exact, so the result depends neither on the number of threads nor on the order.
    return math.fsum(values.tolist()) / len(values)


def _brief(values: list[Any]) -> str:
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values[:5])
    return shown if len(values) <= 5 else f"{shown}, ... ({len(values)} in all)"
