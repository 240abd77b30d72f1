"""Small networks and clips."""

import copy

import torch

from video_gn.models import i3d, is_norm

SMALL = {"width": 4, "num_classes": 5}


def small(*, norm="group", seed=0, **arguments):
    torch.manual_seed(seed)
    groups = {"num_groups": 2} if norm == "group" else {}
    return i3d(50, norm=norm, **{**SMALL, **groups, **arguments})


def randomize(net, seed=0):
    """Random norms, the zeroed last ones too: with those at 0 no branch would count in a comparison."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if is_norm(module):
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
                if getattr(module, "running_var", None) is not None:
                    module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=generator) - 0.5)
                    module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return net


def spread(net, x, training):
    """Scale the classifier so that logits have a spread of 2: scores far from 0 and 1, positions that differ."""
    with torch.no_grad():
        logits = copy.deepcopy(net).train(training).position_logits(x)
        net.classifier.weight.mul_(2 / logits.std())
    return net


def clips(num, frames, px, *, seed=0, dtype=torch.float32, channels=3):
    width = px if isinstance(px, int) else px[1]
    height = px if isinstance(px, int) else px[0]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((num, channels, frames, height, width), generator=generator, dtype=dtype)
