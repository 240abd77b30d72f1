"""Grad-CAM against answers known by hand, and where the cells of a map lie on clip and frame."""

import itertools

import numpy as np
import pytest
import torch
from fvcore.nn.squeeze_excitation import SqueezeExcitation
from nets import randomize
from torch import nn

from video_gn.data.crops import TestCrops
from video_gn.explaining.grad_cam import CellPlaces, grad_cam, interpolation
from video_gn.models import LAYOUTS, build_network, i3d, is_norm
from video_gn.models.resnet3d import Head, Window


def features_of(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "window", "positions"), [((7, 7), 7, 1), ((8, 10), 7, 8), ((8, 10), None, 1), ((2, 2), 7, 1)]
)
def test_with_an_averaging_linear_head_it_is_the_class_activation_map(size, window, positions):
    """Also for a frame larger than the head's window, whose logit is the mean over positions."""
    torch.manual_seed(0)
    head = Head(12, 3, pool=Window((None, window, window)), dropout=0.5).double().eval()
    features = features_of(2, 12, 4, *size)
    assert head(features).shape[1] == positions
    weighted = torch.einsum("c,ncthw->nthw", head.proj.weight[1], features).detach()
    maps = grad_cam(head, features, 1)
    assert (maps > 0).any() and (maps == 0).any()
    torch.testing.assert_close(maps, weighted.relu() / weighted[0].numel(), rtol=1e-12, atol=1e-18)
    if positions == 1:  # so that the heat accounts for the logit
        logit = weighted.mean((1, 2, 3)) + head.proj.bias[1]
        torch.testing.assert_close(logit, head(features)[:, 0, 1])


@pytest.mark.parametrize(("network", "size"), [("x3d_s", (3, 2, 2)), ("x3d_s", (14, 6, 5)), ("slow_r50", (9, 8, 2))])
def test_networks_of_the_hub(network, size):
    """The logit of each position by hand: X3D has a layer without bias and ReLU before the classifier."""
    torch.manual_seed(0)
    head = randomize(build_network({"network": network, "width": 4, "num_classes": 3})).double().eval().blocks[-1]
    channels = head.pool.pre_conv.in_channels if network == "x3d_s" else head.proj.in_features
    features = features_of(2, channels, *size)
    is_projected = network == "x3d_s"
    with torch.no_grad():
        averaged = head.pool.pre_act(head.pool.pre_norm(head.pool.pre_conv(features))) if is_projected else features
        window = [min(pair) for pair in zip((13, 5, 5) if is_projected else (8, 7, 7), size, strict=True)]
        t, h, w = window
        rows = []
        for i, j, k in itertools.product(*(range(n - side + 1) for n, side in zip(size, window, strict=True))):
            mean_NC = averaged[:, :, i : i + t, j : j + h, k : k + w].mean((2, 3, 4))
            if is_projected:
                weight_DC = head.pool.post_conv.weight.flatten(1)
                rows.append((head.proj.weight[1] * (mean_NC @ weight_DC.T > 0)) @ weight_DC)
            else:
                rows.append(head.proj.weight[1].expand(2, -1))
        weights_NC = torch.stack(rows).mean(0) / averaged[0, 0].numel()
        weighted = torch.einsum("nc,ncthw->nthw", weights_NC, averaged)
        assert (len(rows) > 1) == (size[0] > 3) and head(features).shape[1] == len(rows)
        if len(rows) == 1:  # the heat accounts for the logit
            logit_N = head(features)[:, 0, 1] - head.proj.bias[1]
            torch.testing.assert_close(weighted.sum((1, 2, 3)), logit_N)
    maps = grad_cam(head, features, 1)
    assert (maps > 0).any() and (maps == 0).any()
    torch.testing.assert_close(maps, weighted.relu(), rtol=1e-12, atol=1e-18)


class Squares(nn.Module):
    """Logits that are not linear: the sum over cells of channel squares, times 1 and -3 for two channels."""

    def forward(self, features_NCthw):
        squares_NC = features_NCthw.square().sum((2, 3, 4))
        score = squares_NC[:, 0] - 3 * squares_NC[:, 1]
        return torch.stack((score, -score), 1)[:, None]


def test_weights_are_mean_gradients():
    features = features_of(2, 2, 3, 4, 5)
    with torch.no_grad():  # as a predictor computes them
        maps = grad_cam(Squares(), features, 0)
    for view, one in zip(maps, features, strict=True):
        weights = 2 * one[0].mean(), -6 * one[1].mean()
        torch.testing.assert_close(view, (weights[0] * one[0] + weights[1] * one[1]).relu())


def test_one_cell_of_one_channel():
    """The class's channel is on at one place and time: the map has that cell alone, whichever it is."""
    head = Head(3, 2, pool=Window((None, 2, 2)), dropout=0.0).double().eval()
    with torch.no_grad():
        head.proj.weight.copy_(torch.tensor([[0.0, 0, 5], [0, 2, -7]]))
    for size in ((2, 2), (3, 4)):  # one position, and six
        features = torch.zeros(1, 3, 2, *size, dtype=torch.float64)
        features[0, 1, 1, 0, 1] = 3.0
        expected = torch.zeros(1, 2, *size, dtype=torch.float64)
        expected[0, 1, 0, 1] = 2.0 * 3.0 / expected.numel()
        torch.testing.assert_close(grad_cam(head, features, 1), expected)
        assert not grad_cam(head, features, 0).any()


# ---- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [*LAYOUTS, "x3d_s", "slow_r50", "r2plus1d_r50"])
def test_cells_lie_in_the_middle_of_what_they_see(network):
    """Measured: what a cell far from the borders depends on, in a network of which every path counts."""
    arguments = {"layout": network, "zero_init_last_norm": False} if network in LAYOUTS else {"network": network}
    net = build_network({**arguments, "norm": "none", "width": 4, "num_classes": 2}).double().eval()
    for name, module in net.named_modules():
        if is_norm(module):
            module.weight.data.fill_(1)
        if isinstance(module, nn.Conv3d):
            module.weight.data.fill_(1 / module.weight[0].numel())
        if isinstance(module, nn.MaxPool3d):  # has a gradient at the largest pixel alone
            net.set_submodule(name, nn.AvgPool3d(module.kernel_size, module.stride, module.padding))
        if isinstance(module, SqueezeExcitation):  # sees the whole clip
            net.set_submodule(name, nn.Identity())
    stride, first = net.last_map
    sizes = (288, 8, 8), (8, 1120, 8), (8, 8, 1120)
    for axis, size in enumerate(sizes):
        x = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
        features = net.features(x)
        cell = features.shape[2 + axis] // 2
        index = [0, 0, 0, 0, 0]
        index[2 + axis] = cell
        (gradient,) = torch.autograd.grad(features[tuple(index)], x)
        seen = np.flatnonzero(gradient[0, 0].movedim(axis, 0).flatten(1).abs().sum(1))
        assert seen[0] > 0 and seen[-1] < size[axis] - 1
        assert (seen[0] + seen[-1]) / 2 == first[axis] + stride[axis] * cell


def test_interpolation_is_numpys():
    places = np.array([-2.0, 0.0, 0.25, 1.5, 2.0, 7.0])
    values = np.array([3.0, -1.0, 5.0])
    np.testing.assert_allclose(interpolation(places, 3) @ values, np.interp(places, [0, 1, 2], values))
    assert interpolation(places, 1).tolist() == [[1.0]] * 6


@pytest.mark.parametrize("layout", ["nonlocal", "slowfast"])
@pytest.mark.parametrize(("height", "width"), [(97, 200), (200, 97), (60, 60)])
@pytest.mark.parametrize("crops", ["center", "three", "full"])
def test_heat_lies_where_crops_came_from(layout, height, width, crops):
    """Each cell holds its own place in the crop; a frame whose pixels are their own places says where that was."""
    views = TestCrops(crops, short_side_px=132, crop_px=112)
    rows, columns = (torch.arange(n, dtype=torch.uint8) for n in (height, width))
    ramp = torch.stack((*torch.meshgrid(rows, columns, indexing="ij"), torch.zeros(height, width, dtype=torch.uint8)))
    crops_PCHW = views.apply(ramp.permute(1, 2, 0)[None])[:, 0].numpy().astype(float)
    places = CellPlaces(LAYOUTS[layout].last_map(), views, height=height, width=width)
    boxes = places.boxes
    for axis in (0, 1):
        first, step = places.first[1 + axis], places.stride[1 + axis]
        size = crops_PCHW.shape[2 + axis]
        cells = first + step * np.arange((size - 1 - first) // step + 1)
        shape = (len(cells), 1) if axis == 0 else (1, len(cells))
        for crop_CHW, box in zip(crops_PCHW, boxes, strict=True):
            places.boxes = (box,)
            heat_HW = places.on_frame(cells.reshape(1, *shape), height, width)
            source = np.moveaxis(crop_CHW[axis], axis, 0)[:, size // 2 if size < crop_CHW.shape[2 - axis] else 20]
            seen = ~np.isnan(heat_HW).all(1 - axis)
            heat = np.nanmax(heat_HW, 1 - axis, initial=-1)
            assert abs(np.flatnonzero(seen)[0] - source[0]) <= 1 and abs(np.flatnonzero(seen)[-1] - source[-1]) <= 1
            for at in np.flatnonzero(seen & (heat > cells[0]) & (heat < cells[-1])):
                # The crop's pixel at that place shows the pixel of the frame, to a level of rounding.
                assert abs(np.interp(heat[at], np.arange(size), source) - at) <= 0.75


# ---- sanity --------------------------------------------------------------------------------------


def test_other_weights_give_other_maps():
    """Weights are drawn anew from the top down: a picture of edges alone would stay as it is.

    Source: Adebayo et al. 2018 (arXiv:1810.03292), cascading randomization.
    """
    x = features_of(1, 3, 16, 96, 96).float()
    x[:, :, 4:9, 30:60, 40:80] += 3

    def net_of(seed):
        torch.manual_seed(seed)
        return i3d(50, norm="group", num_groups=2, width=4, num_classes=2, zero_init_last_norm=False).eval()

    def map_of(net):
        with torch.no_grad():
            features = net.features(x)
        return grad_cam(net.blocks[-1], features, 1).flatten().numpy()

    similar = []
    for seed in range(5):
        net, other = net_of(seed), net_of(100 + seed)
        maps = [map_of(net)]
        for block in (6, 5, 4, 3, 1, 0):  # the classifier, res5, res4, res3, res2, the stem
            net.blocks[block].load_state_dict(other.blocks[block].state_dict())
            maps.append(map_of(net))
        similar.append([np.corrcoef(maps[0], one)[0, 1] if one.any() else 0.0 for one in maps])
    assert np.mean(similar, 0)[0] == pytest.approx(1)
    assert (np.mean(similar, 0)[1:] < 0.5).all(), np.round(np.mean(similar, 0), 2)
