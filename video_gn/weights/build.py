"""A network as a weight file needs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from video_gn.errors import CheckpointError
from video_gn.models.resnet3d import I3D, i3d
from video_gn.weights.formats import UNKNOWN, Source
from video_gn.weights.load import merge
from video_gn.weights.report import LoadReport

log = logging.getLogger(__name__)


def build_net(source: Source, *, layout: str | None = None) -> tuple[I3D, LoadReport]:
    """The network that a file describes, with the file's weights.

    Args:
        source: of `recognize`.
        layout: where the file does not tell it; "nonlocal" is taken otherwise, and said.

    Returns:
        (network in training mode, what was done with every tensor).

    Raises:
        CheckpointError: where the file's network is none of ours, or does not tell what is needed.
    """
    if source.depth is None or source.width is None:
        other = source.other_network() or f"a network of {source.blocks} blocks"
        raise CheckpointError(f"{source.path}: is of another network: {other}. No I3D can be built from it.")
    if source.norm == UNKNOWN:
        raise CheckpointError(
            f"{source.path}: holds scale and shift of its norms alone, which Group Norm and folded Batch Norm have "
            "alike. Load it into a network whose norm you set: --model.weights, or video_gn.weights.load_into."
        )
    if layout is not None and source.layout not in (None, layout):
        raise CheckpointError(f"{source.path}: needs layout {source.layout!r}, got {layout!r}. Leave the layout out.")
    if source.about:
        arguments = dict(source.about["net"])
        _check_sizes(source, arguments)
    else:
        arguments = {
            "depth": source.depth,
            "layout": _layout(source, layout),
            "norm": source.norm,
            "width": source.width,
            "num_classes": source.num_classes or 400,
        }
        if source.norm == "group":
            arguments["num_groups"] = _num_groups(source)
    # Without this torch would draw 28 million random numbers that are thrown away at once.
    with torch.device("meta"):
        try:
            net = i3d(**arguments)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{source.path}: describes a network that cannot be built: {error}") from error
    net = net.to_empty(device="cpu")
    report = merge(net, source, layout_mismatch="allow" if source.layout is None else "error")
    _reset(net, report)
    return net, report


def _check_sizes(source: Source, arguments: Mapping[str, Any]) -> None:
    """Before memory is taken: what a file says of its network must be what its tensors are."""
    there = {"depth": source.depth, "width": source.width, "num_classes": source.num_classes}
    for name, value in there.items():
        if value is not None and value != arguments[name]:
            raise CheckpointError(
                f"{source.path}: says that its {name} is {arguments[name]}, but its tensors are of {value}"
            )


def _layout(source: Source, layout: str | None) -> str:
    if source.layout or layout:
        return str(source.layout or layout)
    log.warning("%s does not tell its layout: taking 'nonlocal'. --layout names another.", source.path)
    return "nonlocal"


def _num_groups(source: Source) -> int:
    if source.groups is not None:
        return source.groups[1]
    log.warning("%s does not tell the number of groups of its norms: taking 32", source.path)
    return 32


def _reset(net: I3D, report: LoadReport) -> None:
    """Give what the file left out the value that a fresh network has."""
    state = net.state_dict()
    for name in report.left:
        if name.endswith("num_batches_tracked"):
            state[name].zero_()
    if report.left_classifier:
        net.replace_classifier(net.num_classes)
