"""The network against a plain torch reference and against pytorchvideo's own."""

import copy

import pytest
import torch
from nets import clips, randomize, small, spread
from torch.nn import functional as F

from video_gn.models import NORMS, i3d

# ---- a plain reference, from the table of layouts -------------------------------------------------

STEMS = {  # conv1 stride; pool1 kernel, stride, padding
    "nonlocal": ((2, 2, 2), (2, 3, 3), (2, 2, 2), (0, 0, 0)),
    "slowfast": ((1, 2, 2), (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "mmaction": ((2, 2, 2), (1, 3, 3), (2, 2, 2), (0, 1, 1)),
}
TEMPORAL = {"res2": [1, 1, 1], "res3": [1, 0, 1, 0], "res4": [1, 0, 1, 0, 1, 0], "res5": [0, 1, 0]}
BLOCK_OF = {"res2": 1, "res3": 3, "res4": 4, "res5": 5}


def plain_norm(x, weights, name, kind, training):
    """Statistics written out; population variance, eps 1e-5."""
    # In one process, and in its first steps, a relative of Batch Norm is Batch Norm; the frozen one is it at test.
    training = training and kind != "frozen_batch"
    kind = "batch" if kind in ("sync_batch", "frozen_batch", "batch_renorm") else kind
    if kind == "none":
        normalized = x
    elif kind == "batch" and not training:
        mean, variance = (weights[f"{name}.running_{s}"].view(1, -1, 1, 1, 1) for s in ("mean", "var"))
        normalized = (x - mean) / torch.sqrt(variance + 1e-5)
    elif kind == "batch":
        mean = x.mean((0, 2, 3, 4), keepdim=True)
        normalized = (x - mean) / torch.sqrt(((x - mean) ** 2).mean((0, 2, 3, 4), keepdim=True) + 1e-5)
    else:
        num_groups = {"group": 2, "layer": 1, "instance": x.shape[1]}[kind]
        grouped = x.reshape(x.shape[0], num_groups, -1)
        mean = grouped.mean(2, keepdim=True)
        normalized = (grouped - mean) / torch.sqrt(((grouped - mean) ** 2).mean(2, keepdim=True) + 1e-5)
        normalized = normalized.reshape(x.shape)
    scale, shift = (weights[f"{name}.{s}"].view(1, -1, 1, 1, 1) for s in ("weight", "bias"))
    return normalized * scale + shift


def plain_position_logits(weights, x, layout, kind, training):
    """(N, Y, positions in T, H, W)."""

    def norm(x, name):
        return plain_norm(x, weights, name, kind, training)

    conv1_stride, kernel, stride, padding = STEMS[layout]
    x = F.conv3d(x, weights["blocks.0.conv.weight"], stride=conv1_stride, padding=(2, 3, 3))
    x = F.max_pool3d(torch.relu(norm(x, "blocks.0.norm")), kernel, stride, padding)
    for stage, temporal in TEMPORAL.items():
        for b, inflated in enumerate(temporal):
            name = f"blocks.{BLOCK_OF[stage]}.res_blocks.{b}"
            space = 2 if b == 0 and stage != "res2" else 1
            y = F.conv3d(x, weights[f"{name}.branch2.conv_a.weight"], padding=(inflated, 0, 0))
            y = torch.relu(norm(y, f"{name}.branch2.norm_a"))
            y = F.conv3d(y, weights[f"{name}.branch2.conv_b.weight"], stride=(1, space, space), padding=(0, 1, 1))
            y = torch.relu(norm(y, f"{name}.branch2.norm_b"))
            y = norm(F.conv3d(y, weights[f"{name}.branch2.conv_c.weight"]), f"{name}.branch2.norm_c")
            if b == 0:
                x = F.conv3d(x, weights[f"{name}.branch1_conv.weight"], stride=(1, space, space))
                x = norm(x, f"{name}.branch1_norm")
            x = torch.relu(x + y)
        if stage == "res2":
            x = F.max_pool3d(x, (2, 1, 1), (2, 1, 1))
    window = x.shape[2:]
    if layout != "mmaction":
        window = (x.shape[2], min(7, x.shape[3]), min(7, x.shape[4]))
    x = F.avg_pool3d(x, window, stride=1)
    classifier = weights["blocks.6.proj.weight"]
    return F.conv3d(x, classifier[:, :, None, None, None], weights["blocks.6.proj.bias"])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("layout", "frames", "px", "kind"),
    [
        *(("nonlocal", 16, (70, 37), kind) for kind in NORMS),
        # Maps larger than the head's window.
        ("nonlocal", 9, (30, 290), "group"),
        ("nonlocal", 8, (233, 23), "batch"),
        ("slowfast", 5, (261, 20), "group"),
        ("slowfast", 2, (20, 225), "batch"),
        ("mmaction", 9, (23, 260), "group"),
        ("mmaction", 17, (257, 20), "batch"),
    ],
)
def test_net_is_the_plain_reference(layout, frames, px, kind, training):
    x = clips(2, frames, px, dtype=torch.float64)
    net = randomize(small(layout=layout, norm=kind, dropout=0.0, width=2)).double()
    net = spread(net, x, training).train(training)
    weights = {
        name: value.clone().requires_grad_(value.is_floating_point()) for name, value in net.state_dict().items()
    }
    positions = plain_position_logits(weights, x, layout, kind, training)
    if training:
        expected = positions.mean((2, 3, 4))
    else:
        expected = positions.softmax(1).mean((2, 3, 4))
    got = net(x)
    # float64 through 50 layers: 1e-16 of rounding grows by a few orders of magnitude.
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(net.logits(x), positions.mean((2, 3, 4)), rtol=1e-9, atol=1e-9)
    assert (positions[0, 0].numel() > 1) is (layout != "mmaction" and max(px) > 224)
    if positions[0, 0].numel() > 1 and not training:
        assert (positions.mean((2, 3, 4)).softmax(1) - got).abs().max() > 1e-4  # the order of mean and softmax shows

    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (got * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for name, parameter in net.named_parameters():
        if kind == "frozen_batch" and not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        gradient = weights[name].grad
        assert gradient.abs().max() > 0, name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9 * scale, msg=name)


# ---- the peer's own code --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub_net():
    from pytorchvideo.models.hub import i3d_r50

    torch.manual_seed(0)
    return randomize(i3d_r50(pretrained=False))


@pytest.fixture(scope="module")
def twin(hub_net):
    net = i3d(50, layout="slowfast", norm="batch")
    net.load_state_dict(hub_net.state_dict(), strict=True)
    return net


# float32 through 50 layers, and a mean taken in time and then in space instead of at once.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def test_weights_go_to_pytorchvideo_and_back(hub_net, twin):
    assert list(hub_net.state_dict()) == list(twin.state_dict())
    hub_net.load_state_dict(twin.state_dict(), strict=True)


def test_training_logits_are_pytorchvideos(hub_net, twin):
    x = clips(1, 8, 224)
    for net in (hub_net, twin):
        net.train()
        net.blocks[-1].dropout.p = 0.0
    before = copy.deepcopy(hub_net.state_dict())
    torch.testing.assert_close(twin(x), hub_net(x), **CLOSE)
    # The running averages moved alike.
    for (name, ours), theirs in zip(twin.state_dict().items(), hub_net.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE, msg=name)
    for net in (hub_net, twin):
        net.load_state_dict(before)


def test_a_larger_frame_at_test(hub_net, twin):
    x = clips(1, 8, (256, 288))
    spread(twin.eval(), x, False)
    hub_net.load_state_dict(twin.state_dict())
    hub_net.eval()
    maps = []
    hub_net.blocks[5].register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    with torch.no_grad():
        head = hub_net.blocks[6]
        theirs = hub_net(x)  # mean of logits over 2 x 3 positions
        (maps,) = maps
        assert maps.shape[2:] == (4, 8, 9)
        # Its classifier, position by position; then scores are averaged, as SlowFast does.
        scores = [
            F.softmax(head.proj(maps[:, :, :, i : i + 7, j : j + 7].mean((2, 3, 4))), dim=-1)
            for i in range(2)
            for j in range(3)
        ]
        torch.testing.assert_close(twin.logits(x), theirs, **CLOSE)
        torch.testing.assert_close(twin(x), torch.stack(scores).mean(0), **CLOSE)
        assert (theirs.softmax(-1) - twin(x)).abs().max() > 1e-3  # and that is not the score of the mean
