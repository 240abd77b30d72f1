"""Mixup and cutmix of a whole batch on its device, after normalization, by torchvision's transforms.

Shape letters: N clips, C channels, T frames, H, W, Y classes.

All draws are made on the host, by a fork of torch's generator that is seeded with (seed, step, rank): nothing waits for
the device, no other draw changes, and a resumed run mixes as an unbroken one. Clip n is mixed with clip n - 1, clip 0
with the last one: the order of a training batch is random already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

# Keeps this stream apart from others that are seeded by the same three numbers.
_STREAM = 0x6D6978


@dataclass(frozen=True)
class Mixing:
    """Mixup, cutmix, either, or neither, of all clips of a batch alike.

    Args:
        mixup_alpha: Parameter of the symmetric Beta distribution of mixup's weight; 0 is off.
        cutmix_alpha: Parameter of the same for cutmix; 0 is off. If both are on, one of the two is drawn.
        probability: Probability that a batch is mixed at all.
        cutmix_probability: Probability of cutmix, if both are on.
        label_smoothing: Fraction of each target that is spread evenly over all classes, in [0, 1).

    Source: mixup (arXiv:1710.09412), cutmix (arXiv:1905.04899); torchvision's `MixUp` and `CutMix`.
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

    def mix(
        self, frames_NCTHW: torch.Tensor, labels_N: torch.Tensor, num_classes: int, *, seed: int, step: int, rank: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw, and mix a batch: a function of its arguments. The frames are normalized, and not written to.

        `step` counts the batches since the training began, those of earlier epochs included.

        Returns:
            The mixed clips, in the input's dtype and memory order (the input itself if nothing is mixed), and float32
            targets (N, Y), each of sum 1, for `cross_entropy`.
        """
        # The labels are not looked at, which would wait for the device.
        even = self.label_smoothing / num_classes
        targets_NY = torch.full((len(labels_N), num_classes), even, device=labels_N.device)
        targets_NY.scatter_(1, labels_N[:, None], 1 - self.label_smoothing + even)
        if not self.is_on:
            return frames_NCTHW, targets_NY
        key = np.random.SeedSequence([seed, step, rank, _STREAM]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(key))  # `torch.manual_seed` would seed the devices too
            transform = self._draw_transform()
            if transform is None:
                return frames_NCTHW, targets_NY
            # A video is (N, T, C, H, W) there, but only N, H and W matter; in the order N, C, T, H, W torch keeps the
            # memory order too.
            mixed, targets_NY = transform(tv_tensors.Video(frames_NCTHW), targets_NY)
        return mixed.as_subclass(torch.Tensor), targets_NY

    def _draw_transform(self) -> v2.MixUp | v2.CutMix | None:
        u_any, u_which = torch.rand(2, dtype=torch.float64).tolist()
        if u_any >= self.probability:
            return None
        is_cutmix = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or u_which < self.cutmix_probability)
        return v2.CutMix(alpha=self.cutmix_alpha) if is_cutmix else v2.MixUp(alpha=self.mixup_alpha)
