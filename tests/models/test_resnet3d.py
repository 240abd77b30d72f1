"""What the network promises beside its function: shapes, names, counts, initialization, memory format, graphs."""

import copy
import math
from pathlib import Path

import pytest
import torch
from nets import SMALL, clips, randomize, small, spread
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from video_gn.models import LAYOUTS, NORMS, i3d, is_norm

NAMES = Path(__file__).with_name("i3d_r50_names.txt")


MORE_GRAPHS = [("group", 0.5), ("batch", 0.0), ("batch_renorm", 0.0), ("none", 0.0)]


OTHERS = [norm for norm in NORMS if norm not in ("batch", "group")]


# ---- shapes, names, counts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "frames", "in_time", "in_space"),
    [
        ("nonlocal", 32, [16, 8, 8, 4, 4, 4, 4], [112, 55, 55, 55, 28, 14, 7]),
        ("slowfast", 8, [8, 8, 8, 4, 4, 4, 4], [112, 56, 56, 56, 28, 14, 7]),
        ("mmaction", 32, [16, 8, 8, 4, 4, 4, 4], [112, 56, 56, 56, 28, 14, 7]),
    ],
)
def test_map_sizes(layout, frames, in_time, in_space):
    with torch.device("meta"):
        net = i3d(50, layout=layout)
        x = torch.empty(2, 3, frames, 224, 224)
    sizes = []
    for module in (net.blocks[0].conv, *net.blocks[:-1]):
        module.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape)))
    assert net(x).shape == (2, 400)
    assert [s[2] for s in sizes] == in_time
    assert [s[3] for s in sizes] == [s[4] for s in sizes] == in_space
    assert [s[1] for s in sizes] == [64, 64, 256, 256, 512, 1024, 2048]


@pytest.mark.parametrize("norm", NORMS)
def test_count_of_parameters(norm):
    with torch.device("meta"):
        net = i3d(50, norm=norm)
    assert sum(p.numel() for p in net.parameters()) == 28_043_472
    assert sum(is_norm(m) for m in net.modules()) == 53


@pytest.mark.parametrize(("frames", "giga"), [(32, 32.8), (64, 65.7)])
def test_count_of_operations(frames, giga):
    with torch.device("meta"):
        net, x = i3d(50), torch.empty(1, 3, frames, 224, 224)
    with FlopCounterMode(display=False) as counter:
        net(x)
    multiply_adds = counter.get_total_flops() / 2
    assert multiply_adds / 1e9 == pytest.approx(giga, rel=0.01)


def test_names_are_frozen():
    with torch.device("meta"):
        batch, group = i3d(50, norm="batch"), i3d(50, norm="group")
    names = [f"{name} {tuple(value.shape)}" for name, value in batch.state_dict().items()]
    assert names == NAMES.read_text().splitlines()
    statistics = (".running_mean", ".running_var", ".num_batches_tracked")
    expected = [name for name in batch.state_dict() if not name.endswith(statistics)]
    assert list(group.state_dict()) == expected
    for name in (
        "blocks.0.conv.weight",
        "blocks.0.norm.weight",
        "blocks.1.res_blocks.0.branch1_conv.weight",
        "blocks.1.res_blocks.0.branch1_norm.bias",
        "blocks.1.res_blocks.0.branch2.conv_a.weight",
        "blocks.5.res_blocks.2.branch2.norm_c.bias",
        "blocks.6.proj.weight",
        "blocks.6.proj.bias",
    ):
        assert name in expected


@pytest.mark.parametrize(("depth", "blocks"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))])
def test_inflation_alternates(depth, blocks):
    with torch.device("meta"):
        net = i3d(depth)
    patterns = []
    for index in (1, 3, 4, 5):
        convs = [block.branch2.conv_a for block in net.blocks[index].res_blocks]
        assert all(c.padding == (c.kernel_size[0] // 2, 0, 0) and c.kernel_size[1:] == (1, 1) for c in convs)
        patterns.append([c.kernel_size[0] // 2 for c in convs])
    assert tuple(len(p) for p in patterns) == blocks
    assert patterns[0] == [1, 1, 1]
    assert patterns[1] == [1, 0, 1, 0, 1, 0, 1, 0][: blocks[1]]
    assert patterns[2] == [1 - i % 2 for i in range(blocks[2])]
    assert patterns[3] == [0, 1, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_of_layers_are_plain_numbers(layout):
    with torch.device("meta"):
        net = i3d(50, layout=layout)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv3d)]
    assert len(convs) == 53
    for conv in convs:
        assert {type(v) for v in (*conv.kernel_size, *conv.stride, *conv.padding)} == {int}


# ---- initialization -------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_initialization_treats_every_kind_alike(norm, zero):
    net = small(norm=norm, zero_init_last_norm=zero)
    last = {id(m.norm_c) for m in net.modules() if hasattr(m, "norm_c")}
    assert len(last) == 16
    for module in net.modules():
        if is_norm(module):
            assert torch.equal(module.weight, torch.full_like(module.weight, float(not (zero and id(module) in last))))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))


def test_weights_are_he_fan_out_and_a_small_classifier():
    torch.manual_seed(0)
    net = i3d(50)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv3d):
            assert module.bias is None
            expected = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            # The std of n draws is off by 1 / sqrt(2 n); six times that, over 53 layers, is never reached by chance.
            slack = 6 / math.sqrt(2 * module.weight.numel())
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=slack), name
            assert abs(float(module.weight.detach().mean())) < 6 * expected / math.sqrt(module.weight.numel()), name
    assert float(net.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.01)
    assert torch.equal(net.classifier.bias, torch.zeros(400))


def test_blocks_start_as_the_identity():
    net = small()
    block = net.blocks[1].res_blocks[1]
    x = torch.rand(1, 16, 2, 4, 4)
    assert torch.equal(block(x), x)


def test_initialization_is_reproducible():
    first, same, other = small(seed=1).state_dict(), small(seed=1).state_dict(), small(seed=2).state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["blocks.0.conv.weight"], other["blocks.0.conv.weight"])
    # The kind of norm draws nothing: nets of two kinds start from the same convolutions.
    batch = small(seed=1, norm="batch").state_dict()
    assert all(torch.equal(first[name], batch[name]) for name in first)


# ---- what it does with a clip ---------------------------------------------------------------------


@pytest.mark.parametrize("norm", [kind for kind in NORMS if not NORMS[kind].depends_on_batch])
def test_a_sample_does_not_depend_on_its_neighbours(norm):
    net = randomize(small(norm=norm, dropout=0.0)).double()
    x = clips(4, 8, 40, dtype=torch.float64)
    together = net(x)
    for n in range(4):
        torch.testing.assert_close(net(x[n : n + 1])[0], together[n], rtol=1e-10, atol=1e-10)
    # And evaluation computes what training does: the same statistics.
    torch.testing.assert_close(net.eval().logits(x), together, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", [kind for kind in NORMS if NORMS[kind].depends_on_batch])
def test_a_sample_depends_on_its_neighbours_in_training_alone(norm):
    net = randomize(small(norm=norm, dropout=0.0)).double()
    x = clips(4, 8, 40, dtype=torch.float64)
    assert (net(x[:1]) - net(x)[:1]).abs().max() > 1e-2
    net.eval()
    torch.testing.assert_close(net(x[:1]), net(x)[:1], rtol=1e-10, atol=1e-10)


@pytest.fixture
def two_threads():
    """With one thread torch takes another, channels-first, kernel for 1x1 convolutions of small batches."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("layout", "norm"),
    [
        *((layout, "group") for layout in LAYOUTS),
        *(pytest.param(layout, "batch", marks=pytest.mark.slow) for layout in LAYOUTS),
        *(pytest.param("nonlocal", norm, marks=pytest.mark.slow) for norm in OTHERS),
    ],
)
def test_channels_last_3d_is_kept_through(layout, norm, two_threads):
    net = randomize(small(layout=layout, norm=norm)).eval()
    x = clips(2, 16, 64)
    expected = net.double()(x.double())
    net.float().to(memory_format=torch.channels_last_3d)
    seen = {}
    for name, module in net.named_modules():
        if not list(module.children()) and not name.startswith("blocks.6"):
            module.register_forward_hook(
                lambda _module, _inputs, output, name=name: seen.update(
                    {name: output.is_contiguous(memory_format=torch.channels_last_3d)}
                )
            )
    got = net(x.to(memory_format=torch.channels_last_3d))
    assert len(seen) > 150 and all(seen.values()), [name for name, kept in seen.items() if not kept]
    # float32 against float64, through 50 layers.
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-4)


def test_scores_are_float32_under_autocast():
    net = randomize(small()).eval()
    x = clips(2, 16, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, logits = net(x), net.position_logits(x)
    assert logits.dtype == torch.bfloat16
    assert scores.dtype == torch.float32
    # The sum in float32; in bfloat16 it would be off by up to 2**-8.
    torch.testing.assert_close(scores.sum(1), torch.ones(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores, logits.float().softmax(-1).mean(1))


def test_dropout_is_before_the_classifier_and_in_training_alone():
    net = randomize(small(dropout=0.5))
    x = clips(2, 8, 40)
    head = net.blocks[-1]
    seen = []
    head.proj.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    torch.manual_seed(0)
    net(x)
    net.eval()
    net(x)
    dropped, whole = seen
    assert dropped.shape == whole.shape == (2, 1, 32 * SMALL["width"])
    kept = dropped != 0
    assert 0.35 < float(kept.double().mean() / (whole != 0).double().mean()) < 0.65
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_features_are_the_last_map():
    net = small().eval()
    x = clips(2, 16, (64, 96))
    assert net.features(x).shape == (2, 32 * SMALL["width"], 2, 2, 3)
    torch.testing.assert_close(net.blocks[-1](net.features(x)), net.position_logits(x))


@pytest.mark.parametrize(
    ("norm", "drop_path"),
    [("group", 0.0), ("batch", 0.5), *(pytest.param(*row, marks=pytest.mark.slow) for row in MORE_GRAPHS)],
)
def test_one_graph_under_dynamo(norm, drop_path):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    net = randomize(small(norm=norm, dropout=0.0, drop_path=drop_path))
    reference = copy.deepcopy(net)
    net.compile(fullgraph=True, backend=backend)  # fullgraph: a break would raise
    assert list(net.state_dict()) == list(reference.state_dict())
    x = clips(2, 8, 32)
    for training in (True, False):
        for one in (net, reference):
            torch.manual_seed(3)
            one.train(training)
            one.result = one(x)
        torch.testing.assert_close(net.result, reference.result)
    assert len(graphs) == 2
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, msg=name)
    with pytest.raises(ValueError, match="must have at least 8 frames"):
        reference(clips(1, 4, 40))
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiles_for_real():
    x = clips(2, 8, 40)
    net = spread(randomize(small()), x, False).eval()
    with torch.no_grad():
        # float32, fused in another order.
        torch.testing.assert_close(torch.compile(net, fullgraph=True)(x), net(x), rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


def test_exports():
    net = randomize(small()).eval()
    x = clips(2, 8, 40)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    more = clips(3, 8, 40, seed=1)
    torch.testing.assert_close(program.module()(more), net(more))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_trains(norm):
    net = small(norm=norm, dropout=0.0, layout="slowfast", num_classes=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    x, labels = clips(4, 4, 32), torch.tensor([0, 1, 0, 1])
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[-1] < 0.2
