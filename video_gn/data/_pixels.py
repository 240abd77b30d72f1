"""Pixel operations of augmentation on one frame: planes of whole numbers in float32, changed in place.

Shape letters: T frames, C channels, H, W.

They go frame by frame, because the planes of one frame stay in the cache: torchvision's functions on a whole clip
spend most of their time on temporaries of 20 MB. Each function gives the levels of torchvision's function of the
same name for uint8; with a mean (contrast) or a turned hue, a pixel may differ by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torchvision.transforms.v2 import functional as F

Change = Callable[[torch.Tensor], torch.Tensor]

# ITU-R 601-2 luma, to the four places that torchvision and Pillow take.
_LUMA = (0.2989, 0.587, 0.114)
# To uint8 as torchvision does it: each level has an equally wide part of [0, 1].
_FLOAT_TO_BYTE = 256 - 1e-3
# That torchvision's bilinear moves take: fewer repeat the grid's cost, more leave the cache.
_FRAMES_AT_ONCE = 4


def change_frames(frames_TCHW: torch.Tensor, changes: Sequence[Change]) -> torch.Tensor:
    """Apply functions, in order, to every frame: uint8 -> uint8, memory order T, H, W, C.

    Each takes float32 (C, H, W) of whole numbers in [0, 255] to the same, and may write to its input. Without any, the
    input itself is returned.
    """
    if not changes:
        return frames_TCHW
    num_frames, channels, height, width = frames_TCHW.shape
    out_THWC = torch.empty((num_frames, height, width, channels), dtype=torch.uint8)
    planes_CHW = torch.empty((channels, height, width))
    for frame_CHW, out_HWC in zip(frames_TCHW, out_THWC, strict=True):
        x_CHW = planes_CHW.copy_(frame_CHW)
        for change in changes:
            x_CHW = change(x_CHW)
        out_HWC.permute(2, 0, 1).copy_(x_CHW)
    return out_THWC.permute(0, 3, 1, 2)


def grey(x_CHW: torch.Tensor) -> torch.Tensor:
    """Luma as a whole number: (1, H, W)."""
    r, g, b = x_CHW.unbind()
    return r.mul(_LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2]).floor_()[None]


def brightness(x_CHW: torch.Tensor, factor: float) -> torch.Tensor:
    """Levels times a factor; 1 changes nothing."""
    return x_CHW.mul_(factor).clamp_(0, 255).floor_()


def contrast(x_CHW: torch.Tensor, factor: float) -> torch.Tensor:
    """Away from this frame's mean luma; 1 changes nothing, 0 leaves the mean alone."""
    return _blend(x_CHW, grey(x_CHW).mean(), factor)


def saturation(x_CHW: torch.Tensor, factor: float) -> torch.Tensor:
    """Away from each pixel's luma; 1 changes nothing, 0 leaves the luma alone."""
    return _blend(x_CHW, grey(x_CHW), factor)


def _blend(x_CHW: torch.Tensor, other: torch.Tensor, factor: float) -> torch.Tensor:
    return x_CHW.mul_(factor).add_(other, alpha=1 - factor).clamp_(0, 255).floor_()


def hue(x_CHW: torch.Tensor, turn: float) -> torch.Tensor:
    """Turn the hue, in turns of the color circle: 1 / 3 takes red to green. Greys stay.

    The closed form of HSV to RGB: channel n is V - (V - min) * clamp(min(k, 4 - k), 0, 1) with
    k = (n + 6 hue) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    r, g, b = x_CHW.unbind()
    high = torch.maximum(r, g).clamp_(min=b)
    range_ = high - torch.minimum(r, g).clamp_(max=b)
    is_red, is_green = high == r, high == g
    # Six times the hue: 0, 2 and 4 at pure red, green and blue.
    sixth = torch.where(is_red, g - b, torch.where(is_green, b - r, r - g)).div_(range_.clamp(min=1))
    sixth.add_(torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))).add_(6 * turn)
    k_CHW = sixth + torch.tensor([5.0, 3.0, 1.0])[:, None, None]
    k_CHW.sub_(k_CHW.div(6).floor_(), alpha=6)  # `remainder` takes ten times as long
    k_CHW = torch.minimum(k_CHW, 4 - k_CHW).clamp_(0, 1).mul_(range_)
    return torch.sub(high, k_CHW, out=x_CHW).mul_(_FLOAT_TO_BYTE / 255).clamp_(0, 255).floor_()


def sharpness(x_CHW: torch.Tensor, factor: float) -> torch.Tensor:
    """Away from a smoothed frame; 1 changes nothing. The outermost pixels stay."""
    if min(x_CHW.shape[1:]) < 3:
        return x_CHW
    rows = x_CHW[:, :-2] + x_CHW[:, 1:-1] + x_CHW[:, 2:]
    inner = x_CHW[:, 1:-1, 1:-1]
    # Weights 1 around and 5 in the middle, of 13. A thirteenth is never a half: rounding is certain.
    smooth = rows[:, :, :-2].add(rows[:, :, 1:-1]).add_(rows[:, :, 2:]).add_(inner, alpha=4).div_(13).round_()
    inner.add_(smooth.sub_(inner), alpha=1 - factor)
    return x_CHW.clamp_(0, 255).floor_()


def autocontrast(x_CHW: torch.Tensor) -> torch.Tensor:
    """Each channel of this frame stretched to [0, 255]; one of a single level stays."""
    low, high = x_CHW.amin((1, 2)), x_CHW.amax((1, 2))  # `aminmax` of a dimension takes ten times as long
    is_flat = low == high
    scale = (high - low).mul_(1 / 255).masked_fill_(is_flat, 1)
    low = low.masked_fill(is_flat, 0)
    return x_CHW.sub_(low[:, None, None]).div_(scale[:, None, None]).clamp_(0, 255).floor_()


def equalize(x_CHW: torch.Tensor) -> torch.Tensor:
    """Each channel of this frame to an even histogram, as Pillow does it."""
    for plane_HW in x_CHW:
        levels = plane_HW.flatten().to(torch.int32)
        count = torch.bincount(levels, minlength=256)
        step = int(levels.numel() - count[int(count.nonzero()[-1])]) // 255
        if step == 0:
            continue
        table = torch.zeros(256)
        table[1:] = (count.cumsum(0)[:-1] + step // 2).div(step, rounding_mode="floor").clamp_(0, 255)
        torch.index_select(table, 0, levels, out=plane_HW.view(-1))
    return x_CHW


def solarize(frames: torch.Tensor, threshold: float) -> torch.Tensor:
    """Invert what is not below a threshold; uint8 of any shape, whole clips at once."""
    # x ^ 255 is 255 - x, and -1 is 255 in a byte.
    return (frames >= threshold).view(torch.uint8).neg_().bitwise_xor_(frames)


def move(frames_TCHW: torch.Tensor, how: Callable[[torch.Tensor], torch.Tensor], fill: int) -> torch.Tensor:
    """Move the pixels of all frames alike, to the nearest pixel: uint8 -> uint8, memory order T, H, W, C.

    `how` moves the pixels of a float32 picture (1, H, W) and fills with zeros; `fill` is the level of what comes in
    from outside.
    """
    num_frames, channels, height, width = frames_TCHW.shape
    # A picture of the pixels' numbers, from 1, is moved in their place: float32 holds them up to 2^24.
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width)
    source = how(numbers).flatten().to(torch.int64) - 1
    pixels = frames_TCHW.permute(0, 2, 3, 1).reshape(num_frames, height * width, channels)
    moved = pixels.index_select(1, source.clamp(min=0))
    moved.index_fill_(1, (source < 0).nonzero().flatten(), fill)
    return moved.view(num_frames, height, width, channels).permute(0, 3, 1, 2)


def move_by_affine(frames_TCHW: torch.Tensor, fill: int, *, bilinear: bool, **affine: object) -> torch.Tensor:
    """torchvision's `affine` on a uint8 clip, bilinear or to the nearest pixel; arguments left out change nothing."""
    arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **affine}
    if bilinear:
        # torchvision fills with black by default; with an explicit black it darkens the edge twice.
        fills = float(fill) if fill else None
        num_frames, channels, height, width = frames_TCHW.shape
        out_THWC = torch.empty((num_frames, height, width, channels), dtype=torch.uint8)
        for old, new in zip(frames_TCHW.split(_FRAMES_AT_ONCE), out_THWC.split(_FRAMES_AT_ONCE), strict=True):
            moved = F.affine(old, **arguments, interpolation=F.InterpolationMode.BILINEAR, fill=fills)
            new.permute(0, 3, 1, 2).copy_(moved)
        return out_THWC.permute(0, 3, 1, 2)
    return move(frames_TCHW, lambda x: F.affine(x, **arguments, interpolation=F.InterpolationMode.NEAREST), fill)
