"""What is exported computes the network's scores and features, at any size."""

import pytest
import torch

from video_gn.export._graph import ExportedNet, _windows
from video_gn.models import i3d

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def windows_one_by_one(x_NCHW, size):
    """Mean of each window that lies on the map, and how many there are; of a small map its whole length."""
    h, w = (min(size, length) for length in x_NCHW.shape[2:])
    places = [(i, j) for i in range(x_NCHW.shape[2] - h + 1) for j in range(x_NCHW.shape[3] - w + 1)]
    return torch.stack([x_NCHW[:, :, i : i + h, j : j + w].mean((2, 3)) for i, j in places], 1)


@pytest.mark.parametrize("height", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [1, 3, 4])
def test_windows_of_a_map_of_any_size(height, width):
    x_NCHW = torch.randn(2, 4, height, width, dtype=torch.float64)
    means_NPC, weights_P = _windows(x_NCHW, 3)
    counts = weights_P > 0
    wanted = windows_one_by_one(x_NCHW, 3)
    torch.testing.assert_close(means_NPC[:, counts], wanted)
    torch.testing.assert_close(
        weights_P[counts], torch.full((wanted.shape[1],), 1 / wanted.shape[1], dtype=x_NCHW.dtype)
    )


@pytest.mark.parametrize(
    ("layout", "norm", "size"),
    [
        ("nonlocal", "group", (8, 32, 40)),
        ("slowfast", "batch_renorm", (4, 33, 290)),
        ("mmaction", "none", (9, 64, 270)),
    ],
)
def test_scores_and_features_of_pixels(layout, norm, size):
    torch.manual_seed(0)
    net = i3d(50, layout=layout, norm=norm, width=4, num_classes=3, zero_init_last_norm=False).eval()
    frames_NTHWC = torch.randint(256, (2, *size, 3), dtype=torch.uint8)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    x_NCTHW = ((frames_NTHWC / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        scores_NY, features_NC = ExportedNet(net, mean=MEAN, std=STD)(frames_NTHWC)
        torch.testing.assert_close(scores_NY, net(x_NCTHW), rtol=1e-4, atol=1e-6)  # float32, sums in another order
        torch.testing.assert_close(features_NC, net.embed(x_NCTHW), rtol=1e-4, atol=1e-5)
