"""A network of somebody's own, and a run of it."""

import torch
from shared_runs import make_run
from torch import nn

from video_gn.models import OwnNet


class MyNet(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv = nn.Conv3d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm3d(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3, 4)))


def own_run(place, **changes):
    """A run of a random `MyNet` of three classes, whose module is returned."""
    torch.manual_seed(0)
    module = MyNet(3)
    nn.init.normal_(module.norm.running_mean)
    make_run(place, net=OwnNet(module), **changes)
    return module
