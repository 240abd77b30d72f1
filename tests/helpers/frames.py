"""Frames of noise or places, and resizing by its definition in float64."""

import numpy as np
import torch

from video_gn.data.crops import CropParams


def noise(num_frames, height, width, *, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8))


def places(num_frames, height, width):
    """Pixels that say where they stand: row, column, 10 * frame + channel."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.arange(height)[None, :, None]
    frames[..., 1] = np.arange(width)[None, None, :]
    frames[..., 2] = 10 * np.arange(num_frames)[:, None, None]
    return torch.from_numpy(frames)


def weights(length, new_length):
    """The triangle filter, as wide as a pixel of the smaller picture, by definition: (new, old)."""
    scale = length / new_length
    width = max(scale, 1.0)
    out = np.zeros((new_length, length))
    for i in range(new_length):
        center = (i + 0.5) * scale
        for j in range(length):
            out[i, j] = max(0.0, 1 - abs(j + 0.5 - center) / width)
        out[i] /= out[i].sum()
    return out


def resize_by_definition(frames_THWC, height, width):
    x = frames_THWC.numpy().astype(np.float64)
    x = np.einsum("ih,thwc->tiwc", weights(x.shape[1], height), x)
    return np.einsum("jw,thwc->thjc", weights(x.shape[2], width), x)


def crop_params(resized, top=0, left=0, *, crop_px, flip=False):
    return CropParams(*resized, top, left, crop_px, flip)
