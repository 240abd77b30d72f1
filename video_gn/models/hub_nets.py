"""X3D-S, R(2+1)D and Slow by pytorchvideo's own builders, with any norm of `norms.NORMS`, and the table of networks.

Parameters have pytorchvideo's names, so that the weights of its hub load with no renaming. Blocks 0 to 5: stem, res2,
res3, res4, res5, head.

Shape letters: Y classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from video_gn.models import _residual as ptv
from video_gn.models._i3d_arguments import check_counts, check_shared, plain
from video_gn.models._residual import Stage
from video_gn.models.norms import default_groups, make_norm, true_groups
from video_gn.models.resnet3d import Head, Window, i3d, initialize
from video_gn.models.tables import DEFAULT_NUM_GROUPS, I3D_NETWORK, LastMap, NormName
from video_gn.models.video_net import VideoNet


class HubNet(VideoNet, ptv.Net):
    """A network of pytorchvideo's hub; built by the function of its name."""

    def __init__(self, blocks: nn.ModuleList, *, arguments: Mapping[str, Any]) -> None:
        super().__init__(blocks=blocks)
        self.arguments = dict(arguments)

    @property
    def title(self) -> str:
        """Name and norm."""
        return "{network} of pytorchvideo, {norm} norm".format_map(self.arguments)

    @property
    def last_map(self) -> LastMap:
        """Where the last map's cells lie: layers are padded evenly, so the first one's middle is the first pixel."""
        return (_FRAME_STRIDES[self.arguments["network"]], 32, 32), (0.0, 0.0, 0.0)


def x3d_s(
    num_classes: int = 400,
    *,
    norm: NormName = "group",
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    width: int = 12,
    dropout: float = 0.5,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    norm_options: dict[str, float] | None = None,
) -> HubNet:
    """X3D-S for clips of 13 frames at stride 6, 160 px: depthwise convolutions and squeeze-and-excitation.

    Args:
        num_classes: Y.
        norm: Kind of norm, a key of `norms.NORMS`.
        num_groups: The most groups of "group", 32 if neither is given: each layer takes the most that divide its
            channels with two or more in each, such as 12 of 24 channels and 27 of 54.
        channels_per_group: C/G of "group" instead; it must divide the channels of every layer.
        width: 12; other numbers of channels follow from it, 24 of the stem to 192 and 432 of the last stage.
        dropout: Probability of dropping a feature before the classifier, in [0, 1).
        norm_eps: Added to the variance.
        norm_momentum: Weight of the newest batch in running averages.
        norm_options: Numbers that only this kind of norm takes, by name; see `norms.make_norm`.

    Raises:
        ValueError: for a value out of range, groups that do not divide, or options that the norm lacks.

    Source: Feichtenhofer 2020 (arXiv:2004.04730); pytorchvideo's hub `x3d_s`, 73.33% of Kinetics-400 in its zoo.
    """
    if isinstance(width, int) and width % 4:
        raise ValueError(f"width of x3d_s must be a multiple of 4, got {width!r}. It is 12 in the paper.")
    return _hub_net("x3d_s", locals())


def r2plus1d_r50(
    num_classes: int = 400,
    *,
    norm: NormName = "group",
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    width: int = 64,
    dropout: float = 0.5,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    norm_options: dict[str, float] | None = None,
) -> HubNet:
    """R(2+1)D of 50 layers for clips of 16 frames at stride 4, 224 px: convolutions in space, then in time.

    Args:
        num_classes: Y.
        norm: Kind of norm, a key of `norms.NORMS`.
        num_groups: The most groups of "group", as for `x3d_s`.
        channels_per_group: C/G of "group" instead; it must divide the channels of every layer.
        width: Channels of the stem; the stages have 4, 8, 16 and 32 times as many.
        dropout: Probability of dropping a feature before the classifier, in [0, 1).
        norm_eps: Added to the variance.
        norm_momentum: Weight of the newest batch in running averages.
        norm_options: Numbers that only this kind of norm takes, by name; see `norms.make_norm`.

    Raises:
        ValueError: for a value out of range, groups that do not divide, or options that the norm lacks.

    Source: Tran et al. 2018 (arXiv:1711.11248); pytorchvideo's hub `r2plus1d_r50`, 76.01% of Kinetics-400 in its zoo.
    """
    return _hub_net("r2plus1d_r50", locals())


def slow_r50(
    num_classes: int = 400,
    *,
    norm: NormName = "group",
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    width: int = 64,
    dropout: float = 0.5,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    norm_options: dict[str, float] | None = None,
) -> HubNet:
    """The slow pathway of SlowFast alone, ResNet-50, for clips of 8 frames at stride 8, 224 px.

    Args:
        num_classes: Y.
        norm: Kind of norm, a key of `norms.NORMS`.
        num_groups: The most groups of "group", as for `x3d_s`.
        channels_per_group: C/G of "group" instead; it must divide the channels of every layer.
        width: Channels of the stem; the stages have 4, 8, 16 and 32 times as many.
        dropout: Probability of dropping a feature before the classifier, in [0, 1).
        norm_eps: Added to the variance.
        norm_momentum: Weight of the newest batch in running averages.
        norm_options: Numbers that only this kind of norm takes, by name; see `norms.make_norm`.

    Raises:
        ValueError: for a value out of range, groups that do not divide, or options that the norm lacks.

    Source: Feichtenhofer et al. 2019 (arXiv:1812.03982); pytorchvideo's hub `slow_r50`, 74.58% of Kinetics-400 in its
    zoo.
    """
    return _hub_net("slow_r50", locals())


# The settings of each in pytorchvideo/models/hub; widths are named there by what they are counted from.
_BUILDERS: dict[str, Callable[[int, Any], nn.Module]] = {
    "x3d_s": lambda width, norm: ptv.create_x3d(
        stem_dim_in=width, norm=norm, input_clip_length=13, input_crop_size=160
    ),
    "r2plus1d_r50": lambda width, norm: ptv.create_r2plus1d(stem_dim_out=width, norm=norm),
    "slow_r50": lambda width, norm: ptv.create_resnet(
        stem_dim_out=width, norm=norm, stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(8, 7, 7)
    ),
}

# Frames of a clip from one cell of the last map to the next.
_FRAME_STRIDES = {"x3d_s": 1, "r2plus1d_r50": 4, "slow_r50": 1}


def _hub_net(network: str, given: Mapping[str, Any]) -> HubNet:
    arguments = {name: plain(value) for name, value in given.items()}
    check_shared(arguments)
    norm = arguments["norm"]
    groups = {name: arguments[name] for name in ("num_groups", "channels_per_group")}
    check_counts(**{name: value for name, value in groups.items() if value is not None})
    groups = true_groups(norm, DEFAULT_NUM_GROUPS, **groups)
    shared = _shared_channels(network, arguments["width"]) if groups["channels_per_group"] else None
    arguments = {"network": network} | arguments | groups  # so that equal arguments mean equal nets

    def norm_layer(*, num_features: int, **_: Any) -> nn.Module:
        own = dict(groups)
        if own["num_groups"] is not None:
            own["num_groups"] = default_groups(num_features, own["num_groups"])
        # Not the builders' own eps and momentum, which some of them do not pass on.
        return make_norm(
            norm,
            num_features,
            **own,
            eps=arguments["norm_eps"],
            momentum=arguments["norm_momentum"],
            norm_options=arguments["norm_options"],
            layer=f"a layer of {network}",
            shared=shared,
        )

    stem, *stages, head = _BUILDERS[network](arguments["width"], norm_layer).blocks  # type: ignore[misc]
    for module in (m for part in (stem, *stages, head) for m in part.modules()):
        if isinstance(module, nn.Conv3d):
            # The builders leave numpy integers in strides; torch.compile has broken its graph at them.
            module.stride = tuple(int(s) for s in module.stride)
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AvgPool3d):
                setattr(module, name, Window(child.kernel_size))  # type: ignore[arg-type]
            elif isinstance(child, ptv.Swish):
                setattr(module, name, nn.SiLU())  # the same function; its own reads what torch deprecates
    # Under the names of pytorchvideo's.
    head = Head(head.proj.in_features, arguments["num_classes"], pool=head.pool, dropout=arguments["dropout"])
    net = HubNet(nn.ModuleList([stem, *(Stage(stage.res_blocks) for stage in stages), head]), arguments=arguments)
    initialize(net, zero_init_last_norm=True)
    return net


def _shared_channels(network: str, width: int) -> int:
    """What divides the channels of every norm of a network: 6 of X3D-S."""
    found: list[int] = []

    def norm_layer(*, num_features: int, **_: Any) -> nn.Module:
        found.append(num_features)
        return nn.Identity()

    with torch.device("meta"):
        _BUILDERS[network](width, norm_layer)
    return math.gcd(*found)


# Every network that a checkpoint is rebuilt from, by the name in it. Nothing else that a file names is ever built.
NETWORKS: dict[str, Callable[..., VideoNet]] = {
    I3D_NETWORK: i3d,
    "x3d_s": x3d_s,
    "r2plus1d_r50": r2plus1d_r50,
    "slow_r50": slow_r50,
}


def build_network(arguments: Mapping[str, Any]) -> VideoNet:
    """The network that has these `arguments`, freshly initialized.

    Raises:
        KeyError: for a network that is not in `NETWORKS`.
        TypeError: for an argument that it lacks.
        ValueError: for a value out of range.
    """
    given = dict(arguments)
    return NETWORKS[given.pop("network", I3D_NETWORK)](**given)
