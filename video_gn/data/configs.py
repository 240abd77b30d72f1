"""The settings of the data module, as a config nests them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from video_gn.data.augment import (
    Augmentation,
    ColorJitter,
    RandAugment,
    RandomErasing,
    RandomGreyscale,
    RandomResizedCrop,
)
from video_gn.data.crops import TrainTransform


@dataclass(frozen=True)
class SourceConfig:
    """How the lists of videos are read.

    Args:
        root: Directory of a list's relative paths; None is the list's own directory.
        format: Form of the lists: "auto" tells it by what they hold; or folders, list, kinetics, ucf101, hmdb51, ssv2,
            activitynet, diving48, jester, webdataset.
        separator: Separator of a list's fields; None detects it.
        classes: Class names in the order of their numbers, or a file with one per line, with or without numbers; None
            takes them from the list or the folders.
        only_classes: Classes whose videos are kept; None keeps all.
        fraction: Fraction of each class's videos that is kept, in (0, 1].
        missing: Treatment of listed training videos that do not exist: "drop" and count them, or "error".
    """

    root: str | None = None
    format: str = "auto"
    separator: str | None = None
    classes: list[str] | str | None = None
    only_classes: list[str] | None = None
    fraction: float = 1.0
    missing: Literal["drop", "error"] = "drop"


@dataclass(frozen=True)
class SplitConfig:
    """How validation videos are taken out of the training list if `val` is not given.

    Args:
        val_fraction: Fraction of each class's videos for validation, in (0, 1).
        group_by: Column of the list with each video's group; no group lies on both sides.
        val_groups: Groups that are held out for validation; None draws them.
    """

    val_fraction: float = 0.2
    group_by: str | None = None
    val_groups: list[str] | None = None


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation: the paper's by default, and optional additions. All frames of a clip are treated alike.

    Args:
        short_side_px: Closed range of integers from which the short side after resizing is drawn.
        crop_px: Side of the random square crop.
        flip: Probability of a horizontal flip; 0 if a class has a direction.
        crop: "short_side" (the paper's: resize, then a random crop) or "resized" (a random part of the frame,
            resized to the crop).
        scale: Range of the part's share of the frame's area, with crop "resized".
        ratio: Range of the part's width / height, with crop "resized".
        rand_ops: Number of operations of RandAugment; 0 is off.
        rand_magnitude: Strength of RandAugment's operations, up to 30.
        rand_magnitude_std: Standard deviation of that strength.
        rand_interpolation: Interpolation of RandAugment's operations that move pixels.
        brightness: Color jitter b: a factor from [1 - b, 1 + b]; 0 is off.
        contrast: Color jitter of the contrast, as for brightness.
        saturation: Color jitter of the saturation, as for brightness.
        hue: Color jitter h: a shift from [-h, h] of the circle, at most 0.5; 0 is off.
        jitter: Probability of the color jitter.
        grey: Probability of greyscale.
        erase: Probability of erasing a box, the same in all frames.
        erase_scale: Range of the box's share of the frame's area.
        erase_ratio: Range of the box's height / width.
        erase_value: Content of the box: "random" for noise, "mean" for the mean color.
        repeats: Clips that are drawn from each video of a batch and decoded at once; it divides `batch_size`, which
            still counts clips.
    """

    short_side_px: tuple[int, int] = (256, 320)
    crop_px: int = 224
    flip: float = 0.5
    crop: Literal["short_side", "resized"] = "short_side"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rand_ops: int = 0
    rand_magnitude: float = 9.0
    rand_magnitude_std: float = 0.0
    rand_interpolation: Literal["nearest", "bilinear"] = "nearest"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    grey: float = 0.0
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 1 / 3)
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    erase_value: Literal["random", "mean"] = "random"
    repeats: int = 1

    def build_crop(self) -> TrainTransform | RandomResizedCrop:
        """The crop and the flip alone."""
        if self.crop == "short_side":
            return TrainTransform(self.short_side_px, self.crop_px, self.flip)
        if self.crop != "resized":
            raise ValueError(f"augment.crop must be short_side or resized, got {self.crop!r}. Choose one of these.")
        return RandomResizedCrop(self.crop_px, self.scale, self.ratio, self.flip)

    def build(self) -> Augmentation:
        """The whole augmentation; with all parts off, bit for bit the same as `build_crop`."""
        rand = RandAugment(max(1, self.rand_ops), self.rand_magnitude, self.rand_magnitude_std, self.rand_interpolation)
        colors = (self.brightness, self.contrast, self.saturation, self.hue)
        erasing = RandomErasing(self.erase, self.erase_scale, self.erase_ratio, self.erase_value)
        return Augmentation(
            self.build_crop(),
            rand if self.rand_ops else None,
            ColorJitter(*colors, self.jitter) if any(colors) else None,
            RandomGreyscale(self.grey) if self.grey else None,
            erasing if self.erase else None,
        )


@dataclass(frozen=True)
class ViewsConfig:
    """The views of a video in validation and test.

    Args:
        num_clips: Clips of a test video.
        spacing: Rule for their starts, see `video_gn.sampling.test_clips`.
        crops: Crops of a clip: "center"; "three" along the longer side; or "full", the whole frame.
        short_side_px: Short side after resizing.
        crop_px: Side of a test crop; None takes the training crop's.
        val: Clip for validation: the one in the middle ("center"), or a random augmented one, as in
            the paper's Figure 7 ("random").
    """

    num_clips: int = 10
    spacing: str = "nonlocal"
    crops: Literal["center", "three", "full"] = "center"
    short_side_px: int = 256
    crop_px: int | None = None
    val: Literal["center", "random"] = "center"


@dataclass(frozen=True)
class LoaderConfig:
    """Settings of the loaders.

    Args:
        num_workers: Processes that decode; None takes one for each core of this process, at most 8.
        prefetch_factor: Batches that each of them keeps ready.
        timeout_seconds: Time after which a missing batch ends the run; 0 waits for ever.
    """

    num_workers: int | None = None
    prefetch_factor: int = 2
    timeout_seconds: float = 0


def check_decoded_size(decoded_px: int, augment: AugmentConfig, views: ViewsConfig) -> None:
    """Refuse to scale up what the decoder has scaled down, with a ValueError that names the setting."""
    if decoded_px < 2 or decoded_px % 2:
        raise ValueError(
            f"clip.decode_short_side_px must be even and above 0, got {decoded_px}. Leave it out if in doubt."
        )
    is_resized = augment.crop == "resized"
    augmented_px = augment.crop_px if is_resized else max(augment.short_side_px)
    for name, wanted_px in (
        ("augment.crop_px" if is_resized else "augment.short_side_px", augmented_px),
        ("views.short_side_px", views.short_side_px),
    ):
        if decoded_px < wanted_px:
            raise ValueError(
                f"clip.decode_short_side_px must be at least {name} ({wanted_px}), got {decoded_px}. "
                "Set it higher, or leave it out to decode at full size."
            )
