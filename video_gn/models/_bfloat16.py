"""Checks of bfloat16 on a CPU: whether it is slow, and for which clips training is wrong.

**Slow.** oneDNN computes convolutions in bfloat16 by a plain loop where the CPU has no AVX-512. Seen with torch 2.15,
an I3D of width 16 with two clips of 16 x 64 x 64, seconds of bfloat16 over those of float32, by ONEDNN_MAX_CPU_ISA:

    AVX2, AVX2_VNNI_2       forward 46 to 49    training step 17 to 19
    AVX512_CORE             forward 1.2         training step 1.1        (no bfloat16 instructions, but not slow)
    AVX512_CORE_BF16        forward 0.5         training step 0.5

**Wrong**: clips that leave a convolution too few frames. oneDNN's weight gradient of a convolution in bfloat16 is wrong
where the kernel spans more frames than its input has.
Seen with torch 2.11 and 2.15 on a CPU with AVX512-BF16, stride 1, against float32 gradients of the same values, N 2,
4 to 256 channels, kernels k x 1 x 1 and k x 3 x 3 padded by k // 2:

    k = 3   T = 1 right, T = 2 wrong, T >= 3 right
    k = 5   T = 1 right, T = 2 to 4 wrong, T >= 5 right
    k = 7   T = 1 right, T = 2 to 6 wrong, T >= 7 right (7 x 1 x 1 alone, torch 2.15)

Wrong means unrelated to the right gradient (a relative error of 0.7 to 1, or unbounded), infinite, or not a number.
Channels-last weights were wrong for every channel count; contiguous ones were right below 16 channels and in groups.
The output and the gradient of the input were right everywhere, and so was everything in float32. With a stride of 2 in
time fewer lengths were wrong (k = 5: T = 3 and 4); they are all refused here.

The second fault (torch 2.15): forward and backward of a padded 1 x 3 x 3 convolution with stride 2, on maps of one row
(1 x 1, 1 x 2, 1 x 4 px; not 2 x 2), corrupt memory in bfloat16: the process dies by a signal, or the gradient is not a
number. On maps of one column (2 x 1 to 8 x 1 px; not of two) the weight gradient of kernels k x 3 x 3 and k x 5 x 5 was
wrong or infinite, of most depthwise convolutions and some others.

Shape letters: N batch, C channels, T frames, H, W.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

log = logging.getLogger(__name__)


def warn_of_slow_bfloat16(device: str, *, advice: str) -> None:
    """Warn if the device is a CPU that computes convolutions in bfloat16 many times slower.

    Args:
        device: Type of the device that computes.
        advice: Sentence that says what to set instead.
    """
    # torch asks oneDNN, which obeys ONEDNN_MAX_CPU_ISA. Without oneDNN torch computes by itself.
    if device == "cpu" and torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning(
            "bfloat16 is 10 to 50 times slower than float32 on this CPU, which has no AVX-512 or AMX for it "
            "(or ONEDNN_MAX_CPU_ISA hides them). %s",
            advice,
        )


def check_bfloat16_cpu(net: nn.Module, clip_shape_CTHW: Sequence[int]) -> None:
    """Refuse a clip with which bfloat16 training on a CPU gives wrong gradients; nothing is computed or changed.

    Raises:
        ValueError: naming the first convolution, its kernel, and the clip's size there.
    """

    def check(name: str, module: nn.Module, shape_NCTHW: tuple[int, ...]) -> None:
        if isinstance(module, nn.Conv3d):
            _check(name, module, shape_NCTHW[2:], tuple(clip_shape_CTHW))

    visit_maps(net, (1, *clip_shape_CTHW), check)


def visit_maps(
    net: nn.Module, clip_NCTHW: Sequence[int], visit: Callable[[str, nn.Module, tuple[int, ...]], None]
) -> None:
    """Call `visit` with name, module and input shape of each module without children; nothing is computed or changed.

    Raises:
        ValueError: for clips that the net does not take.
    """

    def hook(name: str) -> Any:
        return lambda module, inputs: visit(name, module, tuple(inputs[0].shape))

    modes = [(module, module.training) for module in net.modules()]
    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in net.named_modules()
        if next(module.children(), None) is None
    ]
    try:
        # In evaluation no norm updates statistics or communicates; the maps' sizes are the same.
        net.eval()
        tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        # A compiled call would compile, and not see the hooks.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            functional_call(net, meta, (torch.empty(tuple(clip_NCTHW), device="meta"),))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


def _check(name: str, module: nn.Conv3d, map_THW: tuple[int, ...], clip_shape_CTHW: tuple[int, ...]) -> None:
    frames, height, width = map_THW
    kernel = "x".join(str(k) for k in module.kernel_size)
    advice = "Train with trainer.precision=32-true"
    # One frame under an odd kernel is right, as seen; under an even kernel it is not.
    one_is_right = frames == 1 and module.kernel_size[0] % 2 == 1
    if frames < module.kernel_size[0] and not one_is_right:
        raise ValueError(
            f"clips must leave at least {module.kernel_size[0]} frames before {name} ({kernel}) for bfloat16 "
            f"training on a CPU, whose gradients are wrong otherwise, got {frames} of a clip's "
            f"{clip_shape_CTHW[1]}. {advice}, with longer clips, or with another layout of I3D."
        )
    for line, size, kernel_px, stride in zip(
        ("row", "column"), map_THW[1:], module.kernel_size[1:], module.stride[1:], strict=True
    ):
        if size == 1 and kernel_px > 1 and stride > 1:
            raise ValueError(
                f"clips must leave more than one {line} of pixels before {name} ({kernel}, stride {stride}) for "
                f"bfloat16 training on a CPU, which goes wrong otherwise, got {height} x {width} of a clip's "
                f"{clip_shape_CTHW[2]} x {clip_shape_CTHW[3]}. {advice}, or with larger clips."
            )
