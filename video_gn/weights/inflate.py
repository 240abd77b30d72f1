"""2-D convolutions to 3-D: the weight of every frame is the 2-D weight divided by their number.

On a video whose frames are all the same picture an inflated convolution then gives the 2-D one's output
(but for the frames that padding in time reaches).

Shape letters: O output channels, I input channels, T, H, W of the kernel.
"""

from __future__ import annotations

import torch


def inflate_weight(weight_OIHW: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Repeat a kernel in time and divide it by the number of repeats.

    Args:
        weight_OIHW: Floating point.
        num_frames: T of the result, at least 1.

    Returns:
        (O, I, T, H, W), contiguous, in the input's dtype; its sum over T is the input.

    Raises:
        ValueError: for a weight of another rank, or num_frames below 1.
    Source: Carreira & Zisserman 2017 (arXiv:1705.07750), section 2.2; video-nonlocal-net's initialization.
    """
    if weight_OIHW.ndim != 4:
        raise ValueError(f"weight_OIHW must have 4 dimensions, got {tuple(weight_OIHW.shape)}. 3-D ones need nothing.")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames!r}. 1 adds a dimension and nothing else.")
    weight_OITHW = weight_OIHW.unsqueeze(2)
    if num_frames == 1:
        return weight_OITHW
    return (weight_OITHW / num_frames).expand(-1, -1, num_frames, -1, -1).contiguous()
