"""Converts any zoo's file to safetensors, to a checkpoint of ours, or to pytorchvideo's or torchvision's names."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from video_gn.errors import CheckpointError
from video_gn.files import whole_file, whole_path
from video_gn.models.tables import I3D_NETWORK, OWN_NETWORK
from video_gn.weights.about import KEY, NET_PREFIX, OWN_PREFIX, network_of
from video_gn.weights.build import build_net, describe
from video_gn.weights.files import CHECKSUM, NO_CHECKSUM, read_file, write_checksum
from video_gn.weights.formats import OWN, Source, recognize
from video_gn.weights.keymaps import KEYMAPS
from video_gn.weights.named import find_weights
from video_gn.weights.report import TAKEN, Entry, LoadReport

log = logging.getLogger(__name__)

# Suffix -> whose names, unless others are asked for.
ENDINGS = {".safetensors": OWN, ".ckpt": OWN, ".pyth": "pytorchvideo", ".pth": "torchvision"}
NAMES = (OWN, "pytorchvideo", "torchvision")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    names: str | None = None,
    format: str = "auto",
    layout: str | None = None,
    labels: Sequence[str] = (),
    overwrite: bool = False,
) -> LoadReport:
    """Write a zoo's weights in another format; tensors are equal bit for bit, except inflated ones.

    Args:
        source: Weight file, or PACKAGE:NAME.
        target: `.safetensors` (our names, the network described in its metadata), `.ckpt` (a checkpoint of ours),
            `.pyth` (pytorchvideo's, under `model_state`) or `.pth` (torchvision's names, flat).
        names: "video_gn", "pytorchvideo" or "torchvision" instead of the suffix's.
        format: Format of the source, or "auto".
        layout: Layout of a source that does not say it.
        labels: Class names by number to store.
        overwrite: Replace a target that exists.

    Returns:
        What was done with the source's tensors.

    Raises:
        CheckpointError: for a source that cannot be read, a target that exists, or an unknown suffix.
    """
    path, target = find_weights(source), Path(target)
    if target.suffix not in ENDINGS:
        raise CheckpointError(f"{target}: must end in {', '.join(ENDINGS)}")
    wanted = names or ENDINGS[target.suffix]
    if wanted not in NAMES:
        raise ValueError(f"names must be one of {', '.join(NAMES)}, got {names!r}. Choose one of these.")
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target}: exists already. Choose another name, or say --overwrite.")
    if labels and target.suffix == ".pth":
        raise CheckpointError(
            f"{target}: .pth holds tensors alone, so labels would be lost. Write .safetensors or .ckpt."
        )
    found = recognize(read_file(path), format=format, takes_own=True)
    if found.network == OWN_NETWORK:
        return _convert_own(found, target, wanted, labels)
    if wanted == "torchvision" and found.network != I3D_NETWORK:
        raise CheckpointError(f"{target}: torchvision has no names for {found.network}. Write .safetensors or .pyth.")
    net, report = build_net(found, layout=layout)
    about = describe(found, net.arguments, labels=labels)
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    if not found.has_classifier:
        state = {k: v for k, v in state.items() if not k.startswith(found.classifier)}
    if wanted == "torchvision":
        if net.arguments["nonlocal_blocks"] is not None:
            raise CheckpointError(
                f"{target}: torchvision's names have none for non-local blocks. Write .safetensors, .ckpt or .pyth."
            )
        state = {str(KEYMAPS[wanted].to_theirs(name)): tensor for name, tensor in state.items()}
    _write(target, state, about)
    if target.suffix == ".pth":
        log.warning("%s holds tensors alone: layout, norm, classes, mean and std are not kept in it", target)
    return report


def _convert_own(found: Source, target: Path, wanted: str, labels: Sequence[str]) -> LoadReport:
    """Write somebody's own network, whose tensors are taken as they are."""
    if wanted != OWN:
        raise CheckpointError(
            f"{target}: {wanted} has no names for somebody's own network. Write .safetensors or .ckpt."
        )
    about = describe(found, found.about["net"], labels=labels)
    # safetensors refuses tensors that share memory, as tied weights do.
    _write(target, {ours: found.tensors[key].clone().contiguous() for key, ours in found.names.items()}, about)
    entries = (Entry(key, ours, TAKEN, shape=tuple(found.tensors[key].shape)) for key, ours in found.names.items())
    common = ("path", "format", "container", "norm", "num_classes", "preprocessing", "outside", "foreign")
    given: dict[str, Any] = {name: getattr(found, name) for name in common}
    return LoadReport(**given, layout=None, depth=None, entries=tuple(entries), remaining=())


def _write(target: Path, state: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    if target.suffix == ".safetensors":
        with whole_path(target) as part:
            save_file(state, part, metadata={KEY: json.dumps(about), CHECKSUM: NO_CHECKSUM})
            write_checksum(part)
    else:
        with whole_file(target, "wb") as file:
            torch.save(_container(target.suffix, state, about), file)


def _container(suffix: str, state: dict[str, torch.Tensor], about: dict[str, Any]) -> dict[str, Any]:
    if suffix == ".pyth":
        return {"model_state": state, KEY: about}
    if suffix == ".pth":
        return dict(state)  # flat, as torchvision's: its own loader takes every key for a tensor's
    prefix = OWN_PREFIX if network_of(about["net"]) == OWN_NETWORK else NET_PREFIX
    return {
        KEY: about,
        "state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()},
        # What Lightning asks of any checkpoint; this one has trained for no step.
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.6.0",
    }
