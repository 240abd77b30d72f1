"""What is exported computes the network's scores and features, at any size."""

import itertools

import pytest
import torch
from nets import randomize

from video_gn.export._graph import AnyWindow, ExportedNet, PositionLinear
from video_gn.models import Window, build_network

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def windows_one_by_one(x_NCTHW, size):
    """Mean of each window that lies on the map; of a smaller map its whole length. (N, C, T', H', W')."""
    whole = x_NCTHW.shape[2:]
    t, h, w = (min(side or length, length) for side, length in zip(size, whole, strict=True))
    number = [length - side + 1 for side, length in zip((t, h, w), whole, strict=True)]
    places = itertools.product(*map(range, number))
    means = [x_NCTHW[:, :, i : i + t, j : j + h, k : k + w].mean((2, 3, 4)) for i, j, k in places]
    return torch.stack(means, 2).unflatten(2, number)


@pytest.mark.parametrize("size", [(None, 3, 3), (2, 3, 3), (None, None, None)])
@pytest.mark.parametrize("whole", [(1, 1, 1), (2, 3, 3), (1, 2, 4), (4, 5, 2)])
def test_windows_of_a_map_of_any_size(size, whole):
    x_NCTHW = torch.randn(2, 4, *whole, dtype=torch.float64)
    wanted = windows_one_by_one(x_NCTHW, size)
    for window in (Window(size), AnyWindow(size)):
        torch.testing.assert_close(window(x_NCTHW), wanted)


def test_a_linear_layer_at_each_position():
    conv = torch.nn.Conv3d(3, 5, 1, bias=False).double()
    x_NCTHW = torch.randn(2, 3, 1, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(PositionLinear(conv)(x_NCTHW), conv(x_NCTHW).flatten(2))


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"layout": "nonlocal", "norm": "group"}, (8, 32, 40)),
        ({"layout": "slowfast", "norm": "batch_renorm"}, (4, 33, 290)),
        ({"layout": "mmaction", "norm": "none"}, (9, 64, 270)),
        ({"network": "x3d_s", "norm": "batch"}, (5, 32, 64)),
        ({"network": "x3d_s", "norm": "group"}, (14, 40, 192)),
        ({"network": "slow_r50", "norm": "batch"}, (9, 32, 40)),
    ],
)
def test_scores_and_features_of_pixels(arguments, size):
    torch.manual_seed(0)
    net = randomize(build_network({**arguments, "width": 4, "num_classes": 3})).eval()
    frames_NTHWC = torch.randint(256, (2, *size, 3), dtype=torch.uint8)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    x_NCTHW = ((frames_NTHWC / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        net.classifier.weight.mul_(2 / net.position_logits(x_NCTHW).std())
        scores_NY, features_NC = ExportedNet(net, mean=MEAN, std=STD)(frames_NTHWC)
        torch.testing.assert_close(scores_NY, net(x_NCTHW), rtol=1e-4, atol=1e-6)  # float32, sums in another order
        torch.testing.assert_close(features_NC, net.embed(x_NCTHW), rtol=1e-4, atol=1e-5)
