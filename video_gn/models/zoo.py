"""Named networks with literal numbers: what a row of the paper or a published checkpoint was built with."""

from __future__ import annotations

from video_gn.models.resnet3d import I3D, i3d


def i3d_r50_bn(num_classes: int = 400, *, dropout: float = 0.5) -> I3D:
    """The paper's baseline: ResNet-50 I3D with Batch Normalization.

    Args:
        num_classes: Y.
        dropout: before the classifier.

    Source: Wu & He 2018 (arXiv:1803.08494), Table 8, rows BN; video-nonlocal-net's `resnet_video_org`.
    """
    return i3d(
        50,
        layout="nonlocal",
        norm="batch",
        num_classes=num_classes,
        width=64,
        dropout=dropout,
        zero_init_last_norm=True,
        norm_eps=1e-5,
        norm_momentum=0.1,
    )


def i3d_r50_gn(num_classes: int = 400, *, dropout: float = 0.5) -> I3D:
    """ResNet-50 I3D with Group Normalization, 32 groups.

    Args:
        num_classes: Y.
        dropout: before the classifier.

    Source: Wu & He 2018 (arXiv:1803.08494), Table 8, rows GN.
    """
    return i3d(
        50,
        layout="nonlocal",
        norm="group",
        num_classes=num_classes,
        width=64,
        num_groups=32,
        dropout=dropout,
        zero_init_last_norm=True,
        norm_eps=1e-5,
    )


def i3d_r101_gn(num_classes: int = 400, *, dropout: float = 0.5) -> I3D:
    """ResNet-101 I3D with Group Normalization, 32 groups; the paper has no such row for video.

    Args:
        num_classes: Y.
        dropout: before the classifier.

    Source: depths and inflation as video-nonlocal-net's i3d ResNet-101; the norm as `i3d_r50_gn`.
    """
    return i3d(
        101,
        layout="nonlocal",
        norm="group",
        num_classes=num_classes,
        width=64,
        num_groups=32,
        dropout=dropout,
        zero_init_last_norm=True,
        norm_eps=1e-5,
    )
