"""2-D convolutions to 3-D: the weight of every frame is the 2-D weight divided by their number.

On a video whose frames are all the same picture an inflated convolution then gives the 2-D one's output
(but for the frames that padding in time reaches).

Shape letters: O output channels, I input channels, T, H, W of the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def inflate_weight(weight_OIHW: torch.Tensor, num_frames: int) -> torch.Tensor:
    """One kernel, repeated in time and divided by the number of repeats.

    Args:
        weight_OIHW: floating point.
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


def inflate(state: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Inflate what has one dimension less than it should; all else is passed on as it is.

    Args:
        state: of a 2-D network, under the 3-D network's names.
        shapes: of the 3-D network's tensors; other names are left alone.

    Returns:
        A new dictionary in the order of `state`.

    Raises:
        ValueError: naming the key, where a shape does not fit even so.
    """
    result = {}
    for name, tensor in state.items():
        wanted = tuple(shapes.get(name, tensor.shape))
        if can_inflate(tensor.shape, wanted):
            tensor = inflate_weight(tensor, wanted[2])
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} cannot be inflated to {wanted}. Check the network.")
        result[name] = tensor
    return result


def can_inflate(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a kernel (O, I, H, W) becomes (O, I, T, H, W) by repetition."""
    shape, wanted = tuple(shape), tuple(wanted)
    return len(shape) == 4 and len(wanted) == 5 and shape == (*wanted[:2], *wanted[3:])
