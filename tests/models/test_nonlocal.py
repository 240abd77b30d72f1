"""Non-local blocks: against a loop over positions and pytorchvideo's own; and the networks that have them."""

import copy
import math

import pytest
import torch
from nets import clips, randomize, small, spread
from torch import nn

from video_gn.models import LAYOUTS, NORMS, for_inference, i3d, is_norm
from video_gn.models._nonlocal import NonlocalBlock

WEIGHTINGS = ("softmax", "dot_product")


def block_of(channels, weighting, *, as_mmaction=False, norm=nn.BatchNorm3d, seed=0):
    block = NonlocalBlock(channels, norm(channels), weighting=weighting, as_mmaction=as_mmaction)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in block.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if tensor.ndim == 1 else -0.5))
    return block.double()


def nonlocal_blocks(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, NonlocalBlock)}


# ---- the block ------------------------------------------------------------------------------------


def project(conv, pixel_C):
    """A 1x1x1 convolution at one position."""
    weights = conv.weight[:, :, 0, 0, 0]
    return [
        sum(float(w) * c for w, c in zip(row, pixel_C, strict=True)) + float(0 if conv.bias is None else conv.bias[o])
        for o, row in enumerate(weights)
    ]


def by_hand(block, x_CTHW):
    """(C, T, H, W) before the norm and the sum: numbers alone, a position at a time."""
    channels, frames, height, width = x_CTHW.shape

    def pixel(map_, t, h, w):
        return [float(map_[c][t][h][w]) for c in range(len(map_))]

    def pooled(get):
        """At each position of the halved map, the largest of four, of each channel; an odd last row is left out."""
        return [
            [max(four) for four in zip(*(get(t, 2 * h + i, 2 * w + j) for i in (0, 1) for j in (0, 1)), strict=True)]
            for t in range(frames)
            for h in range(height // 2)
            for w in range(width // 2)
        ]

    def keys(conv):
        if block.as_mmaction:
            return pooled(lambda t, h, w: project(conv, pixel(x_CTHW, t, h, w)))
        return [project(conv, values) for values in pooled(lambda t, h, w: pixel(x_CTHW, t, h, w))]

    phi, g = keys(block.conv_phi), keys(block.conv_g)
    out = torch.empty(channels, frames, height, width, dtype=torch.float64)
    for t in range(frames):
        for h in range(height):
            for w in range(width):
                theta = project(block.conv_theta, pixel(x_CTHW, t, h, w))
                products = [sum(a * b for a, b in zip(theta, key, strict=True)) for key in phi]
                if block.weighting == "dot_product":
                    weights = [p / len(phi) for p in products]
                else:
                    root = 1 if block.as_mmaction else math.sqrt(len(theta))
                    powers = [math.exp(p / root) for p in products]
                    weights = [p / sum(powers) for p in powers]
                found = [sum(a * b[c] for a, b in zip(weights, g, strict=True)) for c in range(len(theta))]
                out[:, t, h, w] = torch.tensor(project(block.conv_out, found), dtype=torch.float64)
    return out


@pytest.mark.parametrize("as_mmaction", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@torch.no_grad()
def test_block_is_a_loop_over_positions(weighting, as_mmaction):
    block = block_of(4, weighting, as_mmaction=as_mmaction, norm=nn.InstanceNorm3d)
    block.norm = nn.Identity()
    block.conv_theta.weight.mul_(4)  # so that the weights of a softmax differ
    x = clips(2, 2, (3, 5), channels=4, dtype=torch.float64)
    expected = torch.stack([by_hand(block, one) for one in x])
    assert expected.std((2, 3, 4)).min() > 0.005, "positions differ"
    torch.testing.assert_close(block(x) - x, expected, rtol=1e-10, atol=1e-12)
    strided = x.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(block(strided) - x, expected, rtol=1e-10, atol=1e-12)
    assert block(strided).is_contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def test_frames_look_at_those_of_their_group_alone():
    block = block_of(4, "softmax", norm=nn.InstanceNorm3d)
    block.norm, block.frames = nn.Identity(), 2
    block.conv_theta.weight.mul_(4)
    x = clips(1, 4, (3, 5), channels=4, dtype=torch.float64)
    expected = torch.cat([by_hand(block, two) for two in x[0].split(2, dim=1)], dim=1)
    torch.testing.assert_close((block(x) - x)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_block_is_pytorchvideos(weighting):
    from pytorchvideo.layers.nonlocal_net import create_nonlocal

    block = block_of(8, weighting)
    peer = create_nonlocal(dim_in=8, dim_inner=4, pool_size=(1, 2, 2), instantiation=weighting).double()
    peer.load_state_dict(block.state_dict(), strict=True)
    x = clips(2, 3, (6, 7), channels=8, dtype=torch.float64)
    for training in (True, False):
        found, expected = (net.train(training)(x) for net in (block, peer))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        pairs = ((found, block), (expected, peer))
        gradients = [torch.autograd.grad(y.square().sum(), net.parameters()) for y, net in pairs]
        for (name, _), ours, theirs in zip(block.named_parameters(), *gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9, msg=name)


# ---- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "places"),
    [(50, ["3.1", "3.3", "4.1", "4.3", "4.5"]), (101, ["3.1", "3.3", "4.6", "4.13", "4.20"])],
)
def test_where_they_stand(depth, places):
    with torch.device("meta"):
        net = i3d(depth, nonlocal_blocks="softmax")
        plain = i3d(depth)
    assert list(nonlocal_blocks(net)) == [f"blocks.{p.replace('.', '.nonlocal_blocks.')}" for p in places]
    own = [name for name in net.state_dict() if "nonlocal_blocks" not in name]
    assert own == list(plain.state_dict()), "all else has its names, so that other weights load"
    assert net.arguments == {**plain.arguments, "nonlocal_blocks": "softmax"}


@pytest.mark.parametrize(("norm", "zero"), [*((norm, True) for norm in NORMS), ("group", False)])
def test_they_start_as_the_identity_with_every_norm(norm, zero):
    net = small(norm=norm, nonlocal_blocks="softmax", zero_init_last_norm=zero)
    assert sum(map(is_norm, net.modules())) == 53 + 5
    for block in nonlocal_blocks(net).values():
        assert type(block.norm) is type(net.blocks[0].norm)
        assert torch.equal(block.norm.weight, torch.full_like(block.norm.weight, float(not zero)))
        for conv in (block.conv_theta, block.conv_phi, block.conv_g, block.conv_out):
            assert float(conv.weight.detach().std()) == pytest.approx(0.01, rel=0.3)
            assert not conv.bias.detach().any()
    if zero:
        plain = small(norm=norm)
        missing = net.load_state_dict(plain.state_dict(), strict=False).missing_keys
        assert missing and all("nonlocal_blocks" in name for name in missing)
        x = clips(2, 8, 33)
        assert torch.equal(net.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    "layout", [one if one == "nonlocal" else pytest.param(one, marks=pytest.mark.slow) for one in LAYOUTS]
)
def test_the_copy_for_inference_and_a_larger_frame(layout):
    px = LAYOUTS[layout].nonlocal_min_px
    for norm in ("batch", "group"):
        net = randomize(small(layout=layout, norm=norm, nonlocal_blocks="softmax")).double().eval()
        x = clips(1, 8, (px, px + 30), dtype=torch.float64)
        net = spread(net, x, training=False)
        with torch.inference_mode():
            expected, given = net(x), x.clone()
            torch.testing.assert_close(for_inference(net)(x), expected, rtol=1e-10, atol=0)
            torch.testing.assert_close(for_inference(net.float())(x.float()), expected.float(), rtol=1e-4, atol=1e-6)
            assert torch.equal(x, given)
    with pytest.raises(ValueError, match=rf"{px} x {px} px for layout '{layout}' with non-local blocks, got 8 frames"):
        net(torch.zeros(1, 3, 8, px - 1, px))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_smallest_frame_is_what_the_pool_takes(layout):
    net = small(layout=layout, nonlocal_blocks="softmax", norm="layer")
    net.check_clip = lambda x: None
    with pytest.raises(RuntimeError, match=r"(?i)output size"):
        net(clips(1, 8, LAYOUTS[layout].nonlocal_min_px - 1))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_recomputed_bit_for_bit(weighting):
    net = randomize(small(norm="batch", nonlocal_blocks=weighting, dropout=0.0)).train()
    x, grads = clips(2, 8, 64), []
    for checkpointing in (False, True):
        one = copy.deepcopy(net)
        one.activation_checkpointing = checkpointing
        one(x).square().sum().backward()
        grads.append(({name: p.grad for name, p in one.named_parameters()}, dict(one.named_buffers())))
    for plain, recomputed in zip(*grads, strict=True):
        for name, value in plain.items():
            assert torch.equal(recomputed[name], value), name
    assert all(g.abs().max() > 0 for name, g in grads[0][0].items() if "theta" in name)


@pytest.mark.slow
def test_compiled_in_one_graph():
    torch._dynamo.reset()
    net = randomize(small(nonlocal_blocks="softmax", dropout=0.0))
    compiled, x = copy.deepcopy(net), clips(2, 8, 33)
    compiled.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"nonlocal_blocks": "gaussian"},
            r"must be one of \['dot_product', 'softmax', 'softmax_4_frames'\], got 'gaussian'",
        ),
        ({"nonlocal_blocks": "softmax", "depth": 152}, r"must be null \(None\) for depth 152, got 'softmax'\. Take"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        i3d(**arguments)
