"""Norms, small stacks of them and inputs, for the tests of the batch family."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from video_gn.models._batch_norms import checkpoint_contexts
from video_gn.models.norms import make_norm

SHAPE = (3, 4, 3, 1, 5)  # N, C, T, H, W
# The warm-up is over after the second of five steps, and both limits are reached by some channels.
RENORM = {"r_max": 1.5, "d_max": 0.5, "warmup_start_steps": 1, "warmup_steps": 2}
EPS, MOMENTUM = 1e-3, 0.3


def clip(shape=SHAPE, seed=0):
    # Off center and of unequal scale per channel, so that wrong sets show.
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.arange(1, shape[1] + 1).view(1, -1, 1, 1, 1) * 0.7 + torch.arange(shape[0]).view(-1, 1, 1, 1, 1)


def build(kind, *, momentum=MOMENTUM, statistics=True, **options):
    """In float64, with random scale, shift and statistics."""
    if kind == "batch_renorm":
        options = {"norm_options": {**RENORM, **options}}
    norm = make_norm(kind, SHAPE[1], eps=EPS, momentum=momentum, **options).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if statistics:
        norm.running_mean.copy_(torch.rand(SHAPE[1], generator=generator))
        norm.running_var.copy_(torch.rand(SHAPE[1], generator=generator) * 9 + 0.5)
    return norm


def stack(kind):
    torch.manual_seed(0)
    layers = []
    for channels in (3, 4, 4):
        options = {"norm_options": RENORM} if kind == "batch_renorm" else {}
        options |= {"num_groups": 2} if kind == "group" else {}
        layers += [nn.Conv3d(channels, 4, 3, padding=1), make_norm(kind, 4, **options), nn.ReLU()]
    return nn.Sequential(*layers).double()


def plainly(net, x):
    return net(x)


def checkpointed(net, x, context_fn=checkpoint_contexts):
    for i in (0, 3, 6):
        x = checkpoint(net[i : i + 3], x, use_reentrant=False, context_fn=context_fn)
    return x


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
