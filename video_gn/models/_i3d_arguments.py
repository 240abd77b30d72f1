"""Checks of the arguments of `i3d` and of the hub's networks, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch

from video_gn.checks import check_choice
from video_gn.models.norms import check_norm_numbers, group_count, make_norm, norm_kind
from video_gn.models.tables import DEPTHS, LAYOUTS, NONLOCAL_AFTER, NonlocalName


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument of `i3d` that is out of range, or groups that do not divide the width."""
    check_choice("depth", arguments["depth"], DEPTHS)
    check_choice("layout", arguments["layout"], LAYOUTS)
    if arguments["nonlocal_blocks"] is not None:
        check_choice("nonlocal_blocks", arguments["nonlocal_blocks"], get_args(NonlocalName))
        if arguments["depth"] not in NONLOCAL_AFTER:
            raise ValueError(
                f"nonlocal_blocks must be null (None) for depth {arguments['depth']}, got "
                f"{arguments['nonlocal_blocks']!r}. Take depth {' or '.join(map(str, NONLOCAL_AFTER))}."
            )
    check_shared(arguments)
    width = arguments["width"]
    if norm_kind(arguments["norm"]).has_groups:
        # Every norm has a multiple of the stem's channels: where these divide, all do.
        groups = {name: arguments[name] for name in ("num_groups", "channels_per_group")}
        group_count(width, **groups, layer=f"the stem's norm blocks.0.norm (width={width})")


def check_shared(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for a value out of range, of an argument that other networks have too."""
    kind = norm_kind(arguments["norm"])
    check_norm_numbers(eps=arguments["norm_eps"], momentum=arguments["norm_momentum"])
    check_counts(**{name: arguments[name] for name in ("num_classes", "width", "in_channels") if name in arguments})
    for name, advice in (
        ("dropout", "The usual value is 0.5; 0 turns it off."),
        ("drop_path", "Usual values are 0.05 to 0.2; 0 turns it off."),
    ):
        if not 0 <= arguments.get(name, 0) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {arguments[name]!r}. {advice}")
    if arguments["norm_options"] is not None:
        _check_norm_options(arguments["norm_options"])
        # Names and ranges are the kind's own: build one layer of it, without memory.
        with torch.device("meta"):
            make_norm(
                arguments["norm"],
                arguments["width"],
                num_groups=1 if kind.has_groups else None,
                norm_options=arguments["norm_options"],
            )


def plain(value: Any) -> Any:
    """A plain value of a numpy number, which would keep a checkpoint from being loaded with weights_only=True."""
    if isinstance(value, Mapping):
        # No options and an empty table are the same net.
        return {str(name): plain(item) for name, item in value.items()} or None
    return value.item() if hasattr(value, "item") else value


def check_counts(**counts: int) -> None:
    """Raise ValueError, with the name, for what is not a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}. Give a positive int.")


def _check_norm_options(options: object) -> None:
    is_table = isinstance(options, Mapping)
    if not is_table or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in options.values()):  # type: ignore[attr-defined]
        raise ValueError(
            f"norm_options must be a table of numbers or null (None), got {options!r}. Give names with a number each."
        )
