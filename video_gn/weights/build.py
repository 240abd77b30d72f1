"""Builds the network that a weight file describes, with the file's weights and what its input is made with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from video_gn.errors import CheckpointError
from video_gn.models import I3D_NETWORK, OWN_NETWORK, OwnNet, VideoNet, build_network
from video_gn.shown import count, shown
from video_gn.weights.about import KEY, UNKNOWN, write_about
from video_gn.weights.files import read_file
from video_gn.weights.formats import Source, recognize
from video_gn.weights.load import merge
from video_gn.weights.named import find_weights
from video_gn.weights.report import LoadReport

log = logging.getLogger(__name__)

# Of torch's list of tensors that do not fit.
_MOST_LINES, _MOST_LINE = 12, 400


def load_net(
    path: str | Path, *, layout: str | None = None, labels: Sequence[str] = ()
) -> tuple[VideoNet, dict[str, Any]]:
    """Build a video network that labels videos, from its weights alone.

    Args:
        path: Checkpoint of this package, or weights of any zoo; or PACKAGE:NAME.
        layout: Layout of a zoo's file that does not say it.
        labels: Class names by number; else the file's own, or Kinetics' for a zoo's 400 classes.

    Returns:
        (network in training mode, what its checkpoint says of it: classes, mean, std, clip and views).

    Raises:
        CheckpointError: if the file is missing, damaged, or not of a video network with a classifier.
    """
    return _built(recognize(read_file(find_weights(path))), path, layout=layout, labels=labels)


def load_own(path: str | Path, module: nn.Module, *, labels: Sequence[str] = ()) -> tuple[OwnNet, dict[str, Any]]:
    """Load the weights of somebody's own network into it, all of them; nothing that the file names is imported.

    Args:
        path: Checkpoint of a training with the network, or what `video-gn hub save` made of it; or PACKAGE:NAME.
        module: The network, built as for the training. After an error it may hold some of the weights.
        labels: Class names by number; else the file's own.

    Returns:
        (the network around the module, what its checkpoint says: classes, mean, std, clip and views).

    Raises:
        TypeError: for what is no module.
        CheckpointError: if the file is missing, damaged, or of a network of the package, or its tensors do not fit.
    """
    if not isinstance(module, nn.Module):
        got = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"net must be a torch.nn.Module, got {got}. Build it: net=MyNet(...)")
    source = recognize(read_file(find_weights(path)), takes_own=True)
    if source.network != OWN_NETWORK:
        raise CheckpointError(f"{path}: is not of somebody's own network, so it is loaded by itself. Leave net out.")
    about = _with_clips(source, labels)
    net = OwnNet(module)
    there, here = shown(about["net"]["class"]), net.title
    tensors = {ours: source.tensors[key] for key, ours in source.names.items()}
    classes = "" if source.num_classes is None else f" for {count(source.num_classes, 'class', 'classes')}"
    try:
        module.float().load_state_dict(tensors)  # clips are float32
    except RuntimeError as error:  # it names each tensor that is missing, is not expected or has another shape
        lines = [shown(" ".join(line.split())[:_MOST_LINE]) for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            "\n".join([f"{path}: does not fit net, a {here}", *(f"  {line}" for line in lines[:_MOST_LINES])])
            + f"\nBuild {there} as it was trained{classes}."
        ) from error
    # A class may have moved to another file. One of another name may compute otherwise with the same tensors.
    if there.rpartition(".")[2] != here.rpartition(".")[2]:
        log.warning("%s was trained as %s, and net is a %s: are they the same network?", path, there, here)
    net.num_classes = source.num_classes or 0
    return net, about


def look_into(path: str | Path) -> tuple[dict[str, Any], int, int]:
    """What a checkpoint says of its network, whole and checked, its numbers of parameters and of classes.

    Somebody's own network is not built: its parameters are counted with their buffers. Errors as `load_net`.
    """
    source = recognize(read_file(find_weights(path)), takes_own=True)
    if source.network == OWN_NETWORK:
        return _with_clips(source), sum(t.numel() for t in source.tensors.values()), source.num_classes or 0
    net, about = _built(source, path)
    return about, sum(p.numel() for p in net.parameters()), net.num_classes


def _built(
    source: Source, path: str | Path, *, layout: str | None = None, labels: Sequence[str] = ()
) -> tuple[VideoNet, dict[str, Any]]:
    if source.is_2d or source.num_classes is None:
        what = "an image network's weights" if source.is_2d else "no classifier"
        raise CheckpointError(f"{path}: holds {what}, so it cannot label videos. Train it: --model.weights {path}")
    net, _ = build_net(source, layout=layout)
    return net, _with_clips(source, labels, net.arguments)


def _with_clips(
    source: Source, labels: Sequence[str] = (), arguments: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `describe` says, if it says how clips are made."""
    about = describe(source, arguments or source.about["net"], labels=labels)
    for name in ("clip", "views"):
        if name not in about:
            raise CheckpointError(f"{source.path}: does not say how its clips are made (key {KEY}.{name})")
    return about


def describe(source: Source, arguments: Mapping[str, Any], *, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a file's network of these arguments as a checkpoint of ours would; `labels` as for `load_net`.

    Raises:
        CheckpointError: for labels of another number than the classes.
    """
    classes, protocol = list(labels or source.classes), {}
    if not source.about:
        from video_gn.weights.zoos import zoo_classes, zoo_protocol

        classes = classes or list(zoo_classes(source))
        protocol = {} if source.is_2d else zoo_protocol(source, arguments.get("layout"))
    if classes and source.num_classes is not None and len(classes) != source.num_classes:
        raise CheckpointError(f"{source.path}: has {source.num_classes} classes, but {len(classes)} labels are given")
    pixels = source.preprocessing
    about = {**source.about, **write_about(arguments, mean=pixels.mean, std=pixels.std)}
    return about | ({"classes": classes} if classes else {}) | protocol


def build_net(source: Source, *, layout: str | None = None) -> tuple[VideoNet, LoadReport]:
    """Build the network that a file describes, in training mode with the file's weights, and report on every tensor.

    If neither the file nor `layout` says the layout, it is "nonlocal", with a warning.

    Raises:
        CheckpointError: if the file's network is none of ours, or the file does not say enough of it.
    """
    is_i3d = source.network == I3D_NETWORK
    if source.width is None or (is_i3d and source.depth is None):
        from video_gn.weights.zoos import other_network

        other = other_network(source) or f"a network of {source.blocks} blocks"
        raise CheckpointError(f"{source.path}: is of another network: {other}. No I3D can be built from it.")
    if source.norm == UNKNOWN:
        raise CheckpointError(
            f"{source.path}: holds scale and shift of its norms alone, which Group Norm and folded Batch Norm have "
            "alike. Load it into a network whose norm you set: --model.weights, or video_gn.weights.load_into."
        )
    check_layout(source.path, source.network, source.layout, layout)
    arguments = _own_arguments(source) if source.about else _zoo_arguments(source, layout)
    # Otherwise torch would draw 28 million random numbers that are overwritten at once.
    with torch.device("meta"):
        try:
            net = build_network(arguments)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{source.path}: describes a network that cannot be built: {error}") from error
    net = net.to_empty(device="cpu")
    report = merge(net, source, layout_mismatch="allow" if source.layout is None else "error")
    _reset(net, report)
    return net, report


def check_layout(path: str, network: str, own: str | None, given: str | None) -> None:
    """Refuse a layout that is given for a file of another one, or of a network without.

    Raises:
        CheckpointError: naming the file.
    """
    if given is None:
        return
    if network != I3D_NETWORK:
        raise CheckpointError(f"{path}: is of {network}; layouts are I3D's own. Leave the layout out.")
    if own not in (None, given):
        raise CheckpointError(f"{path}: needs layout {own!r}, got {given!r}. Leave the layout out.")


def _own_arguments(source: Source) -> dict[str, Any]:
    """What a checkpoint of ours says of its network; before memory is allocated it must agree with the tensors."""
    arguments = dict(source.about["net"])
    there = {"depth": source.depth, "width": source.width, "num_classes": source.num_classes}
    if source.network != I3D_NETWORK:
        del there["depth"]
    for name, value in there.items():
        if value is not None and value != arguments[name]:
            raise CheckpointError(
                f"{source.path}: says that its {name} is {arguments[name]}, but its tensors are of {value}"
            )
    return arguments


def _zoo_arguments(source: Source, layout: str | None) -> dict[str, Any]:
    if source.network != I3D_NETWORK:
        if source.network == "x3d_s":
            log.warning("%s may be of X3D-XS, S or M, which differ in their clips alone: taking S", source.path)
        names = ("network", "norm", "width", "num_classes")
        return {name: getattr(source, name) for name in names if getattr(source, name) is not None}
    layout = source.layout or layout
    if layout is None:
        log.warning("%s does not say its layout: taking 'nonlocal'. --layout names another.", source.path)
    arguments = {
        "depth": source.depth,
        "layout": layout or "nonlocal",
        "norm": source.norm,
        "width": source.width,
        "num_classes": source.num_classes or 400,
        "nonlocal_blocks": source.nonlocal_blocks,
    }
    if source.nonlocal_blocks == UNKNOWN:
        log.warning("%s does not say how its non-local blocks weigh positions: taking 'softmax'", source.path)
        arguments["nonlocal_blocks"] = "softmax"
    if source.norm != "group":
        return arguments
    if source.groups is None:
        log.warning("%s does not say the number of groups of its norms: taking 32", source.path)
    return arguments | {"num_groups": 32 if source.groups is None else source.groups[1]}


def _reset(net: VideoNet, report: LoadReport) -> None:
    """Give the tensors that the file lacks the values of a fresh network."""
    state = net.state_dict()
    for name in report.left:
        if name.endswith("num_batches_tracked"):
            state[name].zero_()
    if report.left_classifier:
        net.replace_classifier(net.num_classes)
