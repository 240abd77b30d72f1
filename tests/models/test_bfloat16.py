import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from video_gn.models import i3d
from video_gn.models._bfloat16 import check_bfloat16_cpu


def frames_of_convs(net, shape_CTHW):
    """T, H, W of each convolution's input, by a real forward."""
    seen = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(lambda m, x, name=name: seen.update({name: tuple(x[0].shape[2:])}))
    with torch.no_grad():
        net.eval()(torch.randn(1, *shape_CTHW))
    return seen


def tiny(**changes):
    return i3d(50, **{"width": 4, "num_groups": 2, "num_classes": 3, **changes})


@pytest.mark.parametrize(
    ("layout", "num_frames"),
    [("nonlocal", 8), ("nonlocal", 24), ("slowfast", 2), ("slowfast", 4), ("slowfast", 8), ("mmaction", 16)],
)
def test_the_first_convolution_with_too_few_frames_is_named(layout, num_frames):
    shape = (3, num_frames, 32, 32)
    sizes = frames_of_convs(tiny(layout=layout), shape)
    net = tiny(layout=layout)
    kernels = {name: m.kernel_size[0] for name, m in net.named_modules() if isinstance(m, nn.Conv3d)}
    bad = [name for name, (t, _, _) in sizes.items() if 1 < t < kernels[name]]
    if not bad:
        check_bfloat16_cpu(net, shape)
        return
    frames, kernel = sizes[bad[0]][0], kernels[bad[0]]
    words = (
        f"clips must leave at least {kernel} frames before {re.escape(bad[0])} .*got {frames} of a clip's {num_frames}"
    )
    with pytest.raises(ValueError, match=words):
        check_bfloat16_cpu(net, shape)


def test_the_nonlocal_layout_leaves_two_frames_of_sixteen():
    with pytest.raises(ValueError, match=r"before blocks\.3\.res_blocks\.0.*got 2 of a clip's 16.*32-true"):
        check_bfloat16_cpu(tiny(), (3, 16, 64, 64))
    check_bfloat16_cpu(tiny(), (3, 32, 64, 64))
    compiled = tiny()
    compiled.compile()  # nothing is compiled until it is called
    with pytest.raises(ValueError, match="got 2 of a clip's 16"):
        check_bfloat16_cpu(compiled, (3, 16, 64, 64))


def test_even_kernels_and_maps_of_one_row():
    even = nn.Sequential(nn.Conv3d(3, 4, (2, 1, 1), padding=(1, 0, 0)))
    with pytest.raises(ValueError, match=r"at least 2 frames before 0 \(2x1x1\).*got 1 of"):
        check_bfloat16_cpu(even, (3, 1, 4, 4))
    strided = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)))
    check_bfloat16_cpu(strided, (3, 4, 2, 2))
    with pytest.raises(ValueError, match=r"more than one row of pixels before 0 \(1x3x3, stride 2\).*got 1 x 4 of"):
        check_bfloat16_cpu(strided, (3, 4, 1, 4))
    with pytest.raises(ValueError, match=r"more than one column of pixels before 0 \(1x3x3, stride 2\).*got 4 x 1 of"):
        check_bfloat16_cpu(strided, (3, 4, 4, 1))


@pytest.mark.parametrize("norm", ["group", "batch", "sync_batch", "batch_renorm"])
def test_the_net_and_the_random_state_are_left_alone(norm):
    net = tiny(norm=norm, num_groups=2 if norm == "group" else None).train()
    net.blocks[1].eval()
    modes = [m.training for m in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    for num_frames in (16, 32):
        try:
            check_bfloat16_cpu(net, (3, num_frames, 32, 32))
        except ValueError:
            assert num_frames == 16
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_pre_hooks for m in net.modules())
    for name, value in net.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[name])


def test_what_is_let_through_is_right_here():
    """bfloat16 gradients are near float32's of the same values wherever the check says so."""
    torch.manual_seed(0)
    for kernel, frames in ((3, 1), (3, 3), (3, 4), (5, 1), (5, 5), (5, 6)):
        conv = nn.Conv3d(16, 16, (kernel, 1, 1), padding=(kernel // 2, 0, 0), bias=False)
        check_bfloat16_cpu(nn.Sequential(conv), (16, frames, 7, 7))
        x = torch.randn(2, 16, frames, 7, 7).bfloat16().to(memory_format=torch.channels_last_3d)
        weight = conv.weight.detach().bfloat16().to(memory_format=torch.channels_last_3d)
        found = []
        for dtype in (torch.bfloat16, torch.float32):
            w = weight.to(dtype, copy=True).requires_grad_()
            y = F.conv3d(x.to(dtype), w, padding=(kernel // 2, 0, 0))
            y.backward(torch.ones_like(y))
            found.append(w.grad.float())
        # bfloat16 has 8 bits; the sums are of 98 values and more, in float32.
        torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.1)


def test_a_cpu_that_computes_bfloat16_by_a_plain_loop_is_warned_of():
    """oneDNN chooses its instructions once a process, so each case is one."""
    program = (
        "import logging, torch; logging.basicConfig()\n"
        "from video_gn.models import warn_of_slow_bfloat16 as warn\n"
        "warn('cpu', advice='Set 32-true.'); warn('cuda', advice='nothing')"
    )

    def printed(isa):
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr.strip()

    words = printed("AVX2")
    assert "bfloat16 is 10 to 50 times slower than float32 on this CPU" in words and words.endswith("Set 32-true.")
    assert len(words.splitlines()) == 1
    if torch.cpu.get_capabilities().get("avx512_vl"):
        assert printed("AVX512_CORE") == ""
