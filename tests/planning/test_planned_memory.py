"""Counts of memory and arithmetic, against published figures, hand counts and what a real step allocates."""

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from video_gn.evaluation.scores import normalize_clips
from video_gn.models import i3d
from video_gn.planning.memory import Step, build_meta_net, count_memory, count_training_macs, count_view_macs
from video_gn.training.optimizer import OptimizerConfig, build_optimizer

PAPER = {"depth": 50, "norm": "batch", "num_classes": 400, "width": 64}
TINY = {"depth": 50, "norm": "group", "num_classes": 5, "width": 8, "num_groups": 4}


def step_of(clip, *, optimizer=None, **more):
    return Step(more.pop("net", TINY), clip, optimizer or OptimizerConfig(), **more)


# ---- arithmetic ----------------------------------------------------------------------------------


def test_published_counts():
    step = step_of((8, 224, 224), net={**PAPER, "layout": "slowfast"})
    # pytorchvideo's model zoo, I3D R50 8x8: 28.04 M parameters, 37.53 G multiply-adds of a view of 256 px. It counts
    # norms too, 1% of them.
    assert sum(p.numel() for p in build_meta_net(step).parameters()) == pytest.approx(28.04e6, rel=2e-4)
    assert count_view_macs(step, (8, 256, 256)) == pytest.approx(37.53e9, rel=0.02)
    # mmaction2's README of I3D, 32x2x1 with NonLocalEmbedGauss: 35.4 M parameters, 59.3 G of a view of 256 px.
    step = step_of((32, 224, 224), net={**PAPER, "layout": "mmaction", "nonlocal_blocks": "softmax"})
    assert sum(p.numel() for p in build_meta_net(step).parameters()) == pytest.approx(35.4e6, rel=2e-3)
    assert count_view_macs(step, (32, 256, 256)) == pytest.approx(59.3e9, rel=0.01)


@pytest.mark.slow
def test_layers_counted_by_hand():
    layers = []
    net = i3d(**TINY)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(
                lambda module, inputs, output: layers.append(output[0].numel() * module.weight[0].numel())
            )
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 8, 32, 32))
    expected = sum(layers) + 5 * 32 * 8  # the classifier
    assert layers[0] == (4 * 16 * 16 * 8) * (3 * 5 * 7 * 7)  # the stem: outputs, and products of each
    forward, training = count_training_macs(step_of((8, 32, 32)))
    assert count_view_macs(step_of((8, 32, 32)), (8, 32, 32)) == forward == expected
    # Backward computes a gradient for weights and one for inputs, but none for the clip.
    assert training == 3 * expected - layers[0]


# ---- memory --------------------------------------------------------------------------------------


def test_memory_published_for_a_gpu():
    # mmaction2's README, i3d_r50_32x2x1_100e_kinetics400_rgb, 8 clips on each GPU: gpu_mem 5170 (MiB, as mmcv logs
    # torch.cuda.max_memory_allocated).
    step = step_of((32, 224, 224), net={**PAPER, "layout": "mmaction"})
    assert count_memory(step).peak(8) / 2**20 == pytest.approx(5170, rel=0.05)


def allocated_peak(step, batch_size):
    """The most bytes that torch's allocator had given out in a second training step on this CPU."""
    frames, height, width = step.clip_THW
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        net = i3d(**step.net).to(memory_format=torch.channels_last_3d).train()
        net.activation_checkpointing = step.checkpointed
        optimizer = build_optimizer(net, step.optimizer, global_batch_size=batch_size)
        for _ in range(2):
            clips = torch.zeros((batch_size, frames, 3, height, width), dtype=torch.uint8)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step.half):
                logits = net(normalize_clips(clips, torch.full((3,), 0.4), torch.full((3,), 0.2)))
            loss = F.cross_entropy(logits.float(), torch.zeros(batch_size, dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    live = most = 0
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize(
    ("norm", "checkpointed"),
    [
        ("group", False),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("batch", False), ("none", False)]),
        *(pytest.param(norm, True, marks=pytest.mark.slow) for norm in ("batch", "group", "none")),
    ],
)
def test_memory_of_a_real_step(norm, checkpointed):
    groups = {"num_groups": 4} if norm == "group" else {"num_groups": None}
    step = step_of((8, 64, 64), net={**TINY, "norm": norm, **groups}, checkpointed=checkpointed, device="cpu")
    assert count_memory(step).peak(3) == pytest.approx(allocated_peak(step, 3), rel=0.1)


@pytest.mark.slow
def test_memory_of_a_real_step_with_nonlocal_blocks():
    step = step_of((16, 96, 96), net={**TINY, "nonlocal_blocks": "softmax"}, device="cpu")
    assert count_memory(step).peak(3) == pytest.approx(allocated_peak(step, 3), rel=0.1)


@pytest.mark.slow
def test_memory_of_a_real_step_of_adamw_in_half_precision():
    step = step_of((16, 64, 64), optimizer=OptimizerConfig(name="adamw"), half=True, device="cpu")
    assert count_memory(step).peak(2) == pytest.approx(allocated_peak(step, 2), rel=0.1)


def test_parts_by_hand():
    step = step_of((8, 32, 32), optimizer=OptimizerConfig(name="adamw", frozen_stages=2))
    found, net = count_memory(step), i3d(**TINY)
    sizes = [4 * p.numel() for p in net.parameters()]
    trained = sum(4 * p.numel() for block in (net.blocks[i] for i in (3, 4, 5, 6)) for p in block.parameters())
    assert (found.weights, found.gradients) == (sum(sizes), trained)
    num_trained = sum(1 for block in (net.blocks[i] for i in (3, 4, 5, 6)) for p in block.parameters())
    assert found.optimizer == 2 * trained + 4 * num_trained  # two means, and a count for each tensor
    assert found.activations(2) == found.peak(2) - found.weights - found.gradients - found.optimizer


def test_the_largest_batch():
    found = count_memory(step_of((8, 32, 32)))
    peaks = {n: found.peak(n) for n in range(1, 4000)}
    for limit in (2e6, 50e6, 1e9):
        for multiple in (1, 3):
            fitting = [n for n, peak in peaks.items() if n % multiple == 0 and peak <= limit]
            assert found.largest_batch(limit, multiple=multiple) == max(fitting, default=0)


@pytest.mark.slow
def test_a_batch_that_was_not_played():
    step = step_of((8, 32, 32), checkpointed=True)
    found = count_memory(step)
    for batch_size in (1, 7):
        course = _course(step, batch_size)
        assert found.peak(batch_size) == pytest.approx(course, abs=1)


def _course(step, batch_size):
    from video_gn.planning import memory

    return memory._count(step, batch_size)[3].max()


@pytest.mark.slow
def test_half_precision():
    """Autocast's own table: on CPUs it computes max pooling in float32. Group Norm takes as much as Batch Norm."""

    def has(name, key):
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key)

    assert has("max_pool3d", "AutocastCPU") and not has("max_pool3d", "AutocastCUDA")
    assert not any(has(name, key) for name in ("batch_norm", "relu") for key in ("AutocastCUDA", "AutocastCPU"))
    peaks = {
        (norm, half): count_memory(
            step_of((16, 112, 112), net={**TINY, "norm": norm, "num_groups": groups}, half=half)
        ).peak(8)
        for norm, groups in (("batch", None), ("group", 4))
        for half in (False, True)
    }
    assert peaks["batch", True] < 0.8 * peaks["batch", False]
    for half in (False, True):
        assert peaks["group", half] == pytest.approx(peaks["batch", half], rel=0.01)
