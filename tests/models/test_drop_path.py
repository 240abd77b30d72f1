"""Stochastic depth against a loop over samples, and against timm's own."""

import copy
import math
import pickle

import pytest
import torch
from nets import clips, randomize, small
from torch import nn

from video_gn.models._residual import DropPathSum


def blocks_of(net):
    return [block for index in (1, 3, 4, 5) for block in net.blocks[index].res_blocks]


def probabilities(net):
    return [getattr(block.branch_fusion, "probability", 0.0) for block in blocks_of(net)]


def test_probabilities_rise_linearly():
    expected = [0.3 * i / 15 for i in range(16)]
    net = small(drop_path=0.3)
    assert probabilities(net) == pytest.approx(expected, rel=1e-12)
    assert probabilities(net)[0] == 0 and probabilities(net)[-1] == pytest.approx(0.3)
    timm = pytest.importorskip("timm.layers.drop")
    # timm's come from a float32 linspace.
    assert probabilities(net) == pytest.approx(timm.calculate_drop_path_rates(0.3, 16), rel=1e-6)


def test_the_sum_is_timms():
    timm = pytest.importorskip("timm.layers.drop")
    shortcut, branch = torch.randn(2, 64, 3, 2, 4, 4).unbind(0)
    module = DropPathSum(0.3).train()
    torch.manual_seed(7)
    got = module(shortcut, branch)
    torch.manual_seed(7)
    assert torch.equal(got, shortcut + timm.drop_path(branch, 0.3, training=True))


def test_a_sample_is_dropped_or_scaled():
    shortcut, branch = torch.randn(2, 4000, 1, 1, 1, 2, dtype=torch.float64).unbind(0)
    torch.manual_seed(0)
    got = DropPathSum(0.25).train()(shortcut, branch)
    dropped = 0
    for n in range(4000):
        if torch.equal(got[n], shortcut[n]):
            dropped += 1
        else:
            torch.testing.assert_close(got[n], shortcut[n] + branch[n] / 0.75, rtol=1e-12, atol=1e-12)
    # Six standard deviations of 4000 draws.
    assert abs(dropped / 4000 - 0.25) < 6 * math.sqrt(0.25 * 0.75 / 4000)


def test_evaluation_drops_nothing():
    shortcut, branch = torch.randn(2, 8, 3, 2, 4, 4).unbind(0)
    assert torch.equal(DropPathSum(0.9).eval()(shortcut, branch), shortcut + branch)
    x = clips(2, 8, 32)
    with_, without = (randomize(small(drop_path=p, dropout=0.0)).eval() for p in (0.9, 0.0))
    assert torch.equal(with_(x), without(x))


def test_the_net_is_a_loop_over_its_blocks():
    net = randomize(small(drop_path=0.8, dropout=0.0))
    x = clips(4, 8, 32)
    torch.manual_seed(5)
    got = net(x)
    torch.manual_seed(5)
    y, block_number = net.blocks[0](x), 0
    for index in range(1, 6):
        if index == 2:
            y = net.blocks[2](y)
            continue
        for block in net.blocks[index].res_blocks:
            shortcut = y if block.branch1_conv is None else block.branch1_norm(block.branch1_conv(y))
            branch = block.branch2(y)
            stays = 1 - 0.8 * block_number / 15
            if block_number:
                kept = torch.empty(4, 1, 1, 1, 1).bernoulli_(stays)
                branch = branch * kept / stays
            y = torch.relu(shortcut + branch)
            block_number += 1
    torch.testing.assert_close(got, net.blocks[6](y).mean(1), rtol=1e-4, atol=1e-5)  # float32, divided in another order
    assert not torch.equal(net(x), got), "other draws"


def test_without_it_nothing_is_there():
    plain, dropping = small(), small(drop_path=0.2)
    assert not any(isinstance(m, DropPathSum) for m in plain.modules())
    assert sum(isinstance(m, DropPathSum) for m in dropping.modules()) == 15
    assert list(plain.state_dict()) == list(dropping.state_dict())
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in dropping.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), dropping.parameters(), strict=True))
    plain.load_state_dict(dropping.state_dict())
    x = clips(2, 8, 32)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    small_without_dropout = small(dropout=0.0)
    torch.random.set_rng_state(before)
    small_without_dropout(x)
    assert torch.equal(torch.random.get_rng_state(), before), "no draws at 0"


def test_memory_format_and_dtype_are_kept():
    shortcut, branch = (
        torch.randn(2, 4, 2, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last_3d) for _ in range(2)
    )
    out = DropPathSum(0.5).train()(shortcut, branch)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last_3d)


def test_copies_and_text():
    net = small(drop_path=0.2)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert probabilities(other) == probabilities(net)
    assert "DropPathSum(probability=0.2)" in repr(net)
    assert isinstance(blocks_of(net)[-1].branch_fusion, nn.Module)


def test_a_run_goes_on_with_another_drop_path_or_from_before_it_was_there():
    from video_gn.training.module import check_same_net

    wanted = small(drop_path=0.2).arguments
    check_same_net({**wanted, "drop_path": 0.0}, wanted)
    older = {name: value for name, value in wanted.items() if name not in ("drop_path", "norm_options")}
    check_same_net(older, wanted)
    check_same_net(older, small().arguments)
