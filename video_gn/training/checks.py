"""Checks before a training starts or resumes."""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from video_gn.errors import CheckpointError, ConfigError
from video_gn.models import I3D_NETWORK, check_bfloat16_cpu, check_norm_training, has_statistics, is_norm, visit_maps

if TYPE_CHECKING:
    from lightning import Trainer
    from torch import nn

    from video_gn.models import OwnNet, VideoNet
    from video_gn.training.mixing import Mixing

log = logging.getLogger(__name__)


def check_training(net: VideoNet | OwnNet, mixing: Mixing, trainer: Trainer, datamodule: Any) -> None:
    """Raise ConfigError, naming the option, if a net, with its weights loaded, cannot learn from its batches."""
    clip_NCTHW = None
    if datamodule is not None and hasattr(datamodule, "clip"):
        side = datamodule.augment.crop_px
        clip_NCTHW = (datamodule.batch_size, 3, datamodule.clip.num_frames, side, side)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    try:
        check_batches(
            net,
            clip_NCTHW,
            world_size=trainer.world_size,
            has_statistics=has_statistics(net),
            is_bfloat16_on_cpu=on_cpu and str(trainer.precision).startswith("bf16"),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if mixing.is_on and (net.num_classes or 2) < 2:
        raise ConfigError(
            "model.mixing.mixup_alpha and cutmix_alpha must be 0 for data of one class: "
            "there is nothing to mix. Set them to 0, or give data of more classes."
        )


def check_batches(
    net: VideoNet | OwnNet,
    clip_NCTHW: tuple[int, ...] | None,
    *,
    world_size: int,
    has_statistics: bool,
    is_bfloat16_on_cpu: bool,
) -> None:
    """Raise ValueError for batches that a net of its norm cannot learn from; the net may be on the meta device.

    `clip_NCTHW` is the shape of a process's batch, None if it is not known; `has_statistics` says whether weights with
    running statistics are loaded.
    """
    norm = net.arguments.get("norm")
    if norm is None:  # somebody's own network, of which nothing is known but its layers
        if clip_NCTHW is not None and is_bfloat16_on_cpu:
            _check_own_bfloat16(net, clip_NCTHW)
        return
    batch_size = 2 if clip_NCTHW is None else clip_NCTHW[0]
    check_norm_training(norm, batch_size=batch_size, world_size=world_size, has_statistics=has_statistics)
    if clip_NCTHW is None:
        return
    net.check_clip(torch.empty(clip_NCTHW, device="meta"))
    if norm == "batch" and batch_size == 1:
        _check_maps(net, clip_NCTHW)
    if is_bfloat16_on_cpu:
        check_bfloat16_cpu(net, clip_NCTHW[1:])


def _check_own_bfloat16(net: nn.Module, clip_NCTHW: tuple[int, ...]) -> None:
    """As `check_bfloat16_cpu`, if the forward runs on tensors without data; else a warning."""
    try:
        check_bfloat16_cpu(net, clip_NCTHW[1:])
    except RuntimeError as error:
        log.warning(
            "bfloat16 on a CPU gives some convolutions wrong gradients; whether those of this network are among them "
            "could not be checked (%s). Compare a few losses with those of --trainer.precision 32-true.",
            str(error).splitlines()[0],
        )


def _check_maps(net: nn.Module, clip_NCTHW: tuple[int, ...]) -> None:
    """Raise ValueError, naming the norm, for a clip that leaves Batch Norm a single value to average over."""

    def check(name: str, module: nn.Module, map_NCTHW: tuple[int, ...]) -> None:
        if is_norm(module) and math.prod(map_NCTHW) == map_NCTHW[1]:
            raise ValueError(
                "model.net.norm must not be 'batch' with data.batch_size 1 and clips whose maps shrink to one value, "
                f"at {name}: its variance is 0. Set it to 'group', or take more clips a batch, or larger clips."
            )

    visit_maps(net, clip_NCTHW, check)


def check_same_net(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming what differs, for a net other than the config's in weights or function."""
    # Dropout and initialization change neither the weights' names nor the net's function at test.
    ignored = {"dropout", "drop_path", "zero_init_last_norm"}
    names = [n for n in sorted({*stored, *wanted}) if n not in ignored and stored.get(n) != wanted.get(n)]
    if "network" in names:  # of two kinds, what else differs says nothing
        names = ["network"]
        stored, wanted = ({"network": n.get("class") or n.get("network", I3D_NETWORK)} for n in (stored, wanted))
    if names:
        differences = ", ".join(f"{n}: {stored.get(n)!r} there, {wanted.get(n)!r} here" for n in names)
        raise CheckpointError(
            f"the checkpoint is of another network ({differences}). Set model.net as it was trained; without -c, "
            "--run_dir RUN takes the run's own settings."
        )


def rounded(values: Sequence[float]) -> list[float]:
    """Values for a message."""
    return [round(float(v), 4) for v in values]


def class_difference(stored: Sequence[str], here: Sequence[str]) -> str:
    """A sentence on how a checkpoint's classes and the data's differ."""
    if sorted(stored) == sorted(here):
        return "the checkpoint's classes have another order than the data's. Set data.source.classes to its order."
    missing = sorted(set(stored) - set(here))
    new = sorted(set(here) - set(stored))
    return (
        f"the checkpoint has {len(stored)} classes, the data {len(here)}; only in the checkpoint: {missing[:5]}, "
        f"only in the data: {new[:5]}. Set data.source.classes to the checkpoint's list."
    )


def warn_of_ignored(config: Any, kind: str, settings: Mapping[str, Sequence[str]]) -> None:
    """Warn of settings that are set but that only other kinds use. Call it from a dataclass's `__post_init__`.

    Its field `name` names a `kind`, such as "optimizer"; `settings` are the fields that each name alone uses.
    """
    others = {field for fields in settings.values() for field in fields} - set(settings[config.name])
    for f in dataclasses.fields(config):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        value = getattr(config, f.name)
        if f.name in others and value != default:
            message = f"{f.name}={value!r} is ignored by {kind} {config.name!r}"
            warnings.warn(message, stacklevel=4)  # past __post_init__ and __init__, to who wrote the config
