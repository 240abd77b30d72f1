"""The gradients that each optimizer step uses, of the same clips in batches of any size."""

import torch
from lightning import Callback

from video_gn.clips import ClipBatch


class Gradients(Callback):
    """Keeps what each optimizer step would use."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]))


def batches(num_clips, size):
    """The same clips, in batches of `size`."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (num_clips, 1, 8, 3, 40, 40), dtype=torch.uint8, generator=generator)
    ids = torch.arange(num_clips)
    rows = ids.split(size)
    return [ClipBatch(frames[row], ids[row] % 5, ids[row]) for row in rows]


def difference(one, other):
    return float((one - other).norm() / other.norm())
