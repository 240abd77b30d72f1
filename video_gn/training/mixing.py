"""Mixup and cutmix of a whole batch on its device, after normalization.

Shape letters: N clips, C channels, T frames, H, W, Y classes.

What is mixed is drawn on the host from a numpy Generator, so that nothing waits for the device and a run
goes on bit for bit from (seed, step, rank). Clip n is mixed with clip n - 1, clip 0 with the last one: the
order of a training batch is random already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

# Keeps this stream apart from others that are seeded by the same three numbers.
_STREAM = 0x6D6978


def mixing_rng(seed: int, step: int, rank: int) -> np.random.Generator:
    """The generator of one step in one process.

    Args:
        seed: of the run.
        step: batches since the training began, those of earlier epochs included.
        rank: of the process.
    """
    return np.random.default_rng([seed, step, rank, _STREAM])


@dataclass(frozen=True)
class MixParams:
    """What one draw of `Mixing` does to a batch.

    Args:
        weight: of a clip itself in its target, in [0, 1]; 1 - weight goes to the other clip's label.
        box: (top, left, bottom, right), px, half-open: what cutmix takes from the other clip; None mixes
            whole clips.
    """

    weight: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Mixing:
    """Mixup, cutmix, either, or neither, of all clips of a batch alike.

    Args:
        mixup_alpha: of the symmetric Beta distribution of mixup's weight; 0 is off.
        cutmix_alpha: of that of cutmix's; 0 is off. Where both are on, one of the two is drawn.
        probability: of a batch to be mixed at all.
        cutmix_probability: of cutmix, where both are on.
        label_smoothing: this part of each target is spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: for a number out of its range.
    Source: mixup (arXiv:1710.09412), cutmix (arXiv:1905.04899); box and pairs as in torchvision's.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    cutmix_probability: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 (off) or above and finite, got {value!r}")
        for name in ("probability", "cutmix_probability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value!r}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing!r}")

    @property
    def is_on(self) -> bool:
        """Whether any clip may be mixed."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def has_soft_targets(self) -> bool:
        """Whether targets are other than the labels."""
        return self.is_on or self.label_smoothing > 0

    def draw(self, rng: np.random.Generator, height: int, width: int) -> MixParams:
        """Draw what to do with a batch.

        Args:
            rng: gives whether, which of the two, the box's middle, and the weight.
            height: px, of the clips.
            width: px, of the clips.

        Raises:
            TypeError: for an `rng` that is no numpy Generator.
        """
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy Generator, got {rng!r}. Use mixing_rng(seed, step, rank).")
        u_any, u_which, u_y, u_x = rng.random(4).tolist()
        if not self.is_on or not u_any < self.probability:
            return MixParams(1.0)
        is_cutmix = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or u_which < self.cutmix_probability)
        alpha = self.cutmix_alpha if is_cutmix else self.mixup_alpha
        weight = float(rng.beta(alpha, alpha))
        if not is_cutmix:
            return MixParams(weight)
        box = cutmix_box(weight, min(int(u_y * height), height - 1), min(int(u_x * width), width - 1), height, width)
        # The box is cut off at the edges and to whole pixels: the weight is what is left of the clip.
        area = (box[2] - box[0]) * (box[3] - box[1])
        return MixParams(1 - area / (height * width), box)

    def apply(
        self, frames_NCTHW: torch.Tensor, labels_N: torch.Tensor, num_classes: int, params: MixParams
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            frames_NCTHW: floating point, normalized; not written to.
            labels_N: int64 in [0, num_classes), on the same device. They are not looked at, which would
                wait for the device.
            num_classes: Y.
            params: from `draw`.

        Returns:
            The mixed clips, in the input's dtype and memory order (the input itself where nothing is
            mixed), and float targets (N, Y), each of sum 1, float32 or above: for `cross_entropy`.

        Raises:
            TypeError: for frames that are not floating point, or labels that are not int64.
            ValueError: for shapes that do not fit, or a box outside of the clips.
        """
        _check_batch(frames_NCTHW, labels_N, num_classes)
        dtype = torch.promote_types(frames_NCTHW.dtype, torch.float32)
        even = self.label_smoothing / num_classes
        targets_NY = torch.full((len(labels_N), num_classes), even, dtype=dtype, device=labels_N.device)
        targets_NY.scatter_(1, labels_N[:, None], 1 - self.label_smoothing + even)
        if params.weight == 1:
            return frames_NCTHW, targets_NY
        targets_NY = torch.lerp(targets_NY.roll(1, 0), targets_NY, params.weight)
        if params.box is None:
            return _mixup(frames_NCTHW, params.weight), targets_NY
        return _cutmix(frames_NCTHW, params.box), targets_NY


def mix(
    frames_NCTHW: torch.Tensor,
    labels_N: torch.Tensor,
    num_classes: int,
    *,
    rng: np.random.Generator,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw and mix a batch; see `Mixing`.

    Args:
        frames_NCTHW: floating point, normalized; not written to.
        labels_N: int64 in [0, num_classes), on the same device.
        num_classes: Y.
        rng: see `mixing_rng`.
        mixup_alpha: 0 is off.
        cutmix_alpha: 0 is off.
        label_smoothing: in [0, 1).

    Returns:
        The mixed clips and their targets (N, Y).
    """
    mixing = Mixing(mixup_alpha, cutmix_alpha, label_smoothing=label_smoothing)
    _check_batch(frames_NCTHW, labels_N, num_classes)
    params = mixing.draw(rng, *frames_NCTHW.shape[3:])
    return mixing.apply(frames_NCTHW, labels_N, num_classes, params)


def cutmix_box(weight: float, middle_y: int, middle_x: int, height: int, width: int) -> tuple[int, int, int, int]:
    """A box of about (1 - weight) of a frame's area and the frame's shape, cut off at its edges.

    Args:
        weight: of what is left, in [0, 1].
        middle_y: px.
        middle_x: px.
        height: px, of the frame.
        width: px, of the frame.

    Returns:
        (top, left, bottom, right), px, half-open.
    """
    half = 0.5 * math.sqrt(1 - weight)
    half_y, half_x = int(half * height), int(half * width)
    top, bottom = max(middle_y - half_y, 0), min(middle_y + half_y, height)
    left, right = max(middle_x - half_x, 0), min(middle_x + half_x, width)
    return top, left, bottom, right


def _mixup(frames_NCTHW: torch.Tensor, weight: float) -> torch.Tensor:
    # Clip by clip: rolling the batch would hold it a third time.
    out_NCTHW = torch.empty_like(frames_NCTHW)
    for n in range(len(frames_NCTHW)):
        torch.lerp(frames_NCTHW[n - 1], frames_NCTHW[n], weight, out=out_NCTHW[n])
    return out_NCTHW


def _cutmix(frames_NCTHW: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    top, left, bottom, right = box
    height, width = frames_NCTHW.shape[3:]
    if not (0 <= top <= bottom <= height and 0 <= left <= right <= width):
        raise ValueError(f"box must lie in frames of size {(height, width)}, got {box!r}. Draw again.")
    out_NCTHW = frames_NCTHW.clone()
    part = (..., slice(top, bottom), slice(left, right))
    out_NCTHW[part] = frames_NCTHW[part].roll(1, 0)
    return out_NCTHW


def _check_batch(frames_NCTHW: torch.Tensor, labels_N: torch.Tensor, num_classes: int) -> None:
    if not frames_NCTHW.is_floating_point():
        raise TypeError(f"frames must be floating point, got {frames_NCTHW.dtype}. Mix after normalization.")
    if labels_N.dtype != torch.int64:
        raise TypeError(f"labels must be torch.int64, got {labels_N.dtype}")
    if frames_NCTHW.ndim != 5 or tuple(labels_N.shape) != (len(frames_NCTHW),):
        raise ValueError(
            "frames must be of shape (N, C, T, H, W) and labels of shape (N,), "
            f"got {tuple(frames_NCTHW.shape)} and {tuple(labels_N.shape)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes!r}")
