"""I3D: a 3-D ResNet whose first 1x1 convolutions are inflated in time, with any norm of `norms.NORMS`.

Assembled from pytorchvideo's builders, so that its parameters have pytorchvideo's names:
blocks.0 stem, 1 res2, 2 pool, 3 res3, 4 res4, 5 res5, 6 head.

Shape letters: N batch, C channels, T frames, H, W, P positions (of the head's window on the last map), Y classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from video_gn.checks import check_choice
from video_gn.models import _residual as ptv
from video_gn.models._i3d_arguments import check_arguments, plain
from video_gn.models._nonlocal import NonlocalBlock
from video_gn.models._residual import Stage, Stem, drop_paths
from video_gn.models.norms import is_norm, make_norm, true_groups
from video_gn.models.tables import (
    DEPTHS,
    LAYOUTS,
    NONLOCAL_AFTER,
    NONLOCAL_FRAMES,
    Depth,
    LastMap,
    LayoutName,
    NonlocalName,
    NormName,
)
from video_gn.models.video_net import VideoNet, initialize_classifier

# Which blocks of a stage have a 3x1x1 (1) and which a 1x1x1 (0) as their first convolution, repeated to the
# stage's depth. Source: video-nonlocal-net, obtain_arc; the same in SlowFast and mmaction2.
INFLATED = ((1,), (1, 0), (1, 0), (0, 1))


class Window(nn.Module):
    """Average over a window of T, H, W, moved by one position at a time; over the whole map along a smaller side.

    Args:
        size_THW: The window; None for the whole map along a side.
    """

    def __init__(self, size_THW: Sequence[int | None]) -> None:
        super().__init__()
        self.size_THW = tuple(size_THW)

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """(N, C, T', H', W') with a cell for each position."""
        whole = x_NCTHW.shape[2:]
        size = [min(side or length, length) for side, length in zip(self.size_THW, whole, strict=True)]
        # On CUDA the gradient of avg_pool3d depends on the order of threads, that of the others does not.
        if size == list(whole):
            return x_NCTHW.mean((2, 3, 4), keepdim=True)
        if size[0] == whole[0]:
            return F.avg_pool2d(x_NCTHW.mean(2), size[1:], stride=1).unsqueeze(2)
        return F.avg_pool3d(x_NCTHW, size, stride=1)


class Head(nn.Module):
    """Average over a window, dropout, a linear classifier at each position of the window.

    Args:
        in_features: C of the last map, as `pool` leaves it.
        num_classes: Y.
        pool: `Window`, alone or between layers of 1x1x1.
        dropout: Probability of dropping a feature in training.
    """

    def __init__(self, in_features: int, num_classes: int, *, pool: nn.Module, dropout: float) -> None:
        super().__init__()
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(in_features, num_classes)

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """Logits at each position, (N, P, Y); P is 1 unless the map is larger than the window."""
        logits_NPY: torch.Tensor = self.proj(self.dropout(self.pooled(x_NCTHW)))
        return logits_NPY

    def pooled(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """The classifier's input at each position, (N, P, C)."""
        pooled_NCTHW: torch.Tensor = self.pool(x_NCTHW)
        return pooled_NCTHW.flatten(2).transpose(1, 2)


class I3D(VideoNet, ptv.Net):
    """The network; built by `i3d`, which `i3d(**net.arguments)` repeats."""

    def __init__(self, blocks: nn.ModuleList, *, arguments: Mapping[str, Any]) -> None:
        super().__init__(blocks=blocks)
        self.arguments = dict(arguments)

    @property
    def title(self) -> str:
        """Depth, norm and layout, for people."""
        return "ResNet-{depth} I3D, {norm} norm, layout {layout}".format_map(self.arguments)

    @property
    def layout(self) -> str:
        """The key of `LAYOUTS`."""
        return str(self.arguments["layout"])

    @property
    def last_map(self) -> LastMap:
        """Where the last map's cells lie."""
        return LAYOUTS[self.layout].last_map()

    def check_clip(self, x_NCTHW: torch.Tensor) -> None:
        """Refuse clips that `forward` would: of another shape or dtype, or too short or too small for the layout."""
        super().check_clip(x_NCTHW)
        layout = LAYOUTS[self.layout]
        frames, height, width = x_NCTHW.shape[2:]
        min_px, blocks = layout.min_px, ""
        if self.arguments["nonlocal_blocks"] is not None:
            min_px, blocks = layout.nonlocal_min_px, " with non-local blocks"
        if frames < layout.min_frames or height < min_px or width < min_px:
            raise ValueError(
                f"a clip must have at least {layout.min_frames} frames of {min_px} x {min_px} px "
                f"for layout {self.layout!r}{blocks}, got {frames} frames of {height} x {width} px (height x width). "
                "Take longer or larger clips, or another layout."
            )
        multiple = layout.min_frames * NONLOCAL_FRAMES
        if self.arguments["nonlocal_blocks"] == "softmax_4_frames" and frames % multiple:
            raise ValueError(
                f"a clip's number of frames must be a multiple of {multiple} for layout {self.layout!r} with non-local "
                f"blocks 'softmax_4_frames', got {frames}. Take longer or shorter clips."
            )


def i3d(
    depth: Depth = 50,
    *,
    layout: LayoutName = "nonlocal",
    norm: NormName = "group",
    num_classes: int = 400,
    width: int = 64,
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    dropout: float = 0.5,
    in_channels: int = 3,
    zero_init_last_norm: bool = True,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    norm_options: dict[str, float] | None = None,
    drop_path: float = 0.0,
    nonlocal_blocks: NonlocalName | None = None,
) -> I3D:
    """A 3-D ResNet with inflated first convolutions, freshly initialized from torch's global generator.

    Args:
        depth: 50, 101 or 152.
        layout: Stem, pools and head: "nonlocal" (the paper's), "slowfast" (also pytorchvideo's) or "mmaction".
        norm: Kind of norm, a key of `norms.NORMS`.
        num_classes: Y.
        width: Channels of the stem; the stages have 4, 8, 16 and 32 times as many.
        num_groups: G of "group"; if neither is given, 32, or fewer (logged) for a width that 32 do not divide.
        channels_per_group: C/G of "group" instead.
        dropout: Probability of dropping a feature before the classifier, in [0, 1).
        in_channels: Channels of the clips.
        zero_init_last_norm: Start each block as the identity, by a scale of 0 in its last norm, of any kind.
        norm_eps: Added to the variance.
        norm_momentum: Weight of the newest batch in running averages.
        norm_options: Numbers that only this kind of norm takes, by name; see `norms.make_norm`.
        drop_path: Stochastic depth: probability in [0, 1) of dropping a sample's last residual branch in training,
            falling linearly to 0 at the first.
        nonlocal_blocks: Five non-local blocks, two in res3 and three in res4, of this weighting: "softmax" (embedded
            Gaussian), "dot_product", or "softmax_4_frames", whose blocks of res3 look at 4 frames at a time, as those
            of Non-local's networks with folded norms. None for none. The layout says in which zoo's form.

    Raises:
        ValueError: for a value out of range, groups that do not divide the width, or options that the norm lacks.

    Source: Wu & He 2018 (arXiv:1803.08494), section 4.3; Wang et al. 2018 (arXiv:1711.07971), Table 1 and code.
    """
    arguments = {name: plain(value) for name, value in locals().items()}
    check_arguments(arguments)
    source = LAYOUTS[layout]
    groups = true_groups(norm, width, num_groups=num_groups, channels_per_group=channels_per_group)
    arguments |= groups  # so that equal arguments mean equal nets

    def norm_layer(*, num_features: int, eps: float, momentum: float) -> nn.Module:
        # pytorchvideo's builders call every norm as they would BatchNorm3d.
        return make_norm(
            norm, num_features, **groups, eps=eps, momentum=momentum, norm_options=arguments["norm_options"]
        )

    norm_arguments: dict[str, Any] = {"norm": norm_layer, "norm_eps": norm_eps, "norm_momentum": norm_momentum}
    stem = ptv.create_res_basic_stem(
        in_channels=in_channels,
        out_channels=width,
        conv_kernel_size=(5, 7, 7),
        conv_stride=source.conv1_stride,
        conv_padding=(2, 3, 3),
        pool_kernel_size=source.pool1_kernel,
        pool_stride=source.pool1_stride,
        pool_padding=source.pool1_padding,
        **norm_arguments,
    )
    blocks: list[nn.Module] = [Stem(stem)]
    for index, num_blocks in enumerate(DEPTHS[depth]):
        blocks.append(_stage(index, num_blocks, width=width, norm_arguments=norm_arguments))
        if index == 0:
            blocks.append(nn.MaxPool3d((2, 1, 1), stride=(2, 1, 1)))
    window = Window((None, source.head_window_px, source.head_window_px))
    blocks.append(Head(32 * width, num_classes, pool=window, dropout=dropout))

    net = I3D(nn.ModuleList(blocks), arguments=arguments)
    stages = [block for block in blocks if isinstance(block, Stage)]
    drop_paths(stages, drop_path)
    if nonlocal_blocks is not None:
        for index, places in enumerate(NONLOCAL_AFTER[depth], start=1):
            for place in places:
                channels = 4 * width * 2**index
                last_norm = norm_layer(num_features=channels, eps=norm_eps, momentum=norm_momentum)
                in_groups = nonlocal_blocks == "softmax_4_frames" and index == 1
                stages[index].nonlocal_blocks[str(place)] = NonlocalBlock(
                    channels,
                    last_norm,
                    weighting="dot_product" if nonlocal_blocks == "dot_product" else "softmax",
                    as_mmaction=layout == "mmaction",
                    frames=NONLOCAL_FRAMES if in_groups else None,
                )
    initialize(net, zero_init_last_norm=zero_init_last_norm)
    return net


def min_clip(layout: str) -> tuple[int, int]:
    """The fewest frames and the smallest height and width, in px, that a layout takes.

    Raises:
        ValueError: for an unknown layout.
    """
    check_choice("layout", layout, LAYOUTS)
    return LAYOUTS[layout].min_frames, LAYOUTS[layout].min_px


def initialize(net: nn.Module, *, zero_init_last_norm: bool) -> None:
    """Draw fresh weights in place, from torch's global generator, treating every kind of norm alike.

    With `zero_init_last_norm`, the last norm of each block has scale 0 instead of 1.

    Source: Wu & He 2018, section 4.1; convolutions He et al. 2015 (arXiv:1502.01852), fan-out, but N(0, 0.01) in
        non-local blocks, as video-nonlocal-net's NONLOCAL.CONV_INIT_STD.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif is_norm(module):
            _fill(module, weight=1.0, bias=0.0)
        elif isinstance(module, nn.Linear):
            initialize_classifier(module)
    for module in net.modules():
        if isinstance(module, NonlocalBlock):
            for conv in (module.conv_theta, module.conv_phi, module.conv_g, module.conv_out):
                nn.init.normal_(conv.weight, std=0.01)
                _fill(conv, bias=0.0)
        if zero_init_last_norm and isinstance(module, ptv.BottleneckBlock | NonlocalBlock):
            _fill(module.norm if isinstance(module, NonlocalBlock) else module.norm_c, weight=0.0, bias=0.0)


def _stage(index: int, num_blocks: int, *, width: int, norm_arguments: dict[str, Any]) -> Stage:
    """res2 (index 0) to res5 (index 3)."""
    kernels = [(3, 1, 1) if inflated else (1, 1, 1) for inflated in INFLATED[index]]
    spatial_stride = 1 if index == 0 else 2
    inner = width * 2**index
    stage = ptv.create_res_stage(
        depth=num_blocks,
        dim_in=width if index == 0 else 2 * inner,
        dim_inner=inner,
        dim_out=4 * inner,
        bottleneck=ptv.create_bottleneck_block,
        conv_a_kernel_size=kernels,
        conv_a_stride=(1, 1, 1),
        conv_a_padding=[(kernel[0] // 2, 0, 0) for kernel in kernels],
        conv_b_stride=(1, spatial_stride, spatial_stride),
        **norm_arguments,
    )
    for module in stage.modules():
        if isinstance(module, nn.Conv3d):
            # The builder leaves numpy integers in the shortcuts' strides; torch.compile has broken its graph at them.
            module.stride = tuple(int(s) for s in module.stride)
    return Stage(stage.res_blocks)


def _fill(module: nn.Module, **values: float) -> None:
    for name, value in values.items():
        parameter = getattr(module, name, None)
        if parameter is not None:
            nn.init.constant_(parameter, value)
