"""What a checkpoint says of itself: network, input, classes, clips and views; written, checked and read here.

It lies under `KEY` in a checkpoint, and as JSON under the same name in the metadata of a safetensors file. A file may
hold anything, so everything is checked before it is used.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import video_gn
from video_gn.errors import CheckpointError
from video_gn.models.tables import HUB_NETWORKS, I3D_NETWORK, OWN_NETWORK
from video_gn.sampling import SPACINGS
from video_gn.shown import shown

if TYPE_CHECKING:
    from video_gn.weights.files import FileContent

KEY = "video_gn"
# Prefix of the network's tensors in a checkpoint, and that of the classifier's among them.
NET_PREFIX = "net."
# That of the tensors of `OwnNet.module`; safetensors have them under the module's own names.
OWN_PREFIX = "net.module."
CLASSIFIER = "blocks.6.proj."
# The classifier of the hub's networks, which have no pool among their blocks.
HUB_CLASSIFIER = "blocks.5.proj."
# res2, res3, res4, res5 as block numbers (2 is the pool, which has no parameters).
STAGES = ("1", "3", "4", "5")
# The norm of a file that holds scale and shift alone, under names that do not say whose.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a network's input is normalized by.

    Args:
        mean: Mean of pixels in [0, 1], RGB.
        std: Standard deviation of pixels in [0, 1], RGB.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Source: Non-local Networks' code; SlowFast and pytorchvideo have the same.
VIDEO_INPUT = Preprocessing((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


def write_about(
    net_arguments: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float], **more: Any
) -> dict[str, Any]:
    """Describe a network in plain containers, enough to rebuild it and to prepare its input.

    Args:
        net_arguments: `VideoNet.arguments`, or `OwnNet.arguments`.
        mean: Mean of pixels in [0, 1], RGB.
        std: Standard deviation of pixels in [0, 1], RGB.
        more: `environment` of the run, and `classes`, `clip` and `views` as the data module describes them.
    """
    return {
        "version": video_gn.__version__,
        "net": dict(net_arguments),
        "mean": [float(v) for v in mean],
        "std": [float(v) for v in std],
        **more,
    }


# ---- rules ---------------------------------------------------------------------------------------

# Whether a value fits, and what it must be.
Rule = tuple[Callable[[Any], bool], str]
Rules = dict[str, Rule]

# The frames of all views of a video lie in memory at once: 10 clips of 3 crops of 64 frames of 256 px take 0.4 GB.
MOST_VIEW_BYTES = 1 << 34
_LARGE = 1_000_000


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_table(value: object, kinds: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, kinds) for k, v in value.items())


def _count(most: int, unit: str, *, least: int = 1) -> Rule:
    """A whole number; comparing it with both ends is safe for an integer of any length."""
    return lambda v: isinstance(v, int) and _is_number(v) and least <= v <= most, f"{unit} from {least} to {most:,}"


def _number(least: float, most: float, what: str) -> Rule:
    """A number; NaN lies between no two ends."""
    return lambda v: _is_number(v) and least <= v <= most, f"{what} from {least:g} to {most:g}"


def _or_none(rule: Rule) -> Rule:
    return lambda v: v is None or rule[0](v), f"{rule[1]}, or none"


def _text(most: int, what: str) -> Rule:
    return lambda v: isinstance(v, str) and len(v) <= most, f"{what} of up to {most} characters"


def _triple(rule: Rule) -> Rule:
    return lambda v: isinstance(v, list | tuple) and len(v) == 3 and all(map(rule[0], v)), f"three {rule[1]}"


def _one_of(names: Iterable[str]) -> Rule:
    known = tuple(names)
    return lambda v: isinstance(v, str) and v in known, f"one of {', '.join(known)}"


_TABLE: Rule = (lambda v: _is_table(v, object), "a table")
_NAME = _text(1000, "a name")
_PIXELS = _count(16_384, "a length in px")
_FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")
_GROUPS = _or_none(_count(65_536, "a number of groups"))

_NET: Rules = {
    "depth": _count(1000, "a number of layers"),
    "width": _count(65_536, "a number of channels"),
    "layout": _NAME,
    "norm": _NAME,
    "num_classes": _count(_LARGE, "a number of classes"),
    "num_groups": _GROUPS,
    "channels_per_group": _or_none(_count(65_536, "a number of channels")),
    "dropout": _number(0, 1, "a probability"),
    "in_channels": _count(1000, "a number of channels"),
    "zero_init_last_norm": _FLAG,
    "norm_eps": _number(1e-30, 1e6, "a number"),
    "norm_momentum": _number(0, 1, "a weight"),
    "norm_options": (
        lambda v: v is None or (_is_table(v, int | float) and all(map(_number(-1e12, 1e12, "")[0], v.values()))),
        "a table of numbers or none",
    ),
    "drop_path": _number(0, 1, "a probability"),
    "nonlocal_blocks": _or_none(_NAME),
}
# The hub's networks have less of these.
_NETWORK = _one_of((I3D_NETWORK, *HUB_NETWORKS, OWN_NETWORK))
_HUB_NET: Rules = {
    "network": _NETWORK,
    **{
        name: _NET[name]
        for name in (
            "width", "norm", "num_classes", "num_groups", "channels_per_group", "dropout", "norm_eps",
            "norm_momentum", "norm_options",
        )
    },
}  # fmt: skip
_OWN_NET: Rules = {"network": _NETWORK, "class": _NAME}
# Beyond these a pixel, a frame's scaled one or their square is no number in float32.
INPUT: Rules = {
    "mean": _triple(_number(-1e6, 1e6, "numbers")),
    "std": _triple(_number(1e-6, 1e6, "numbers above 0,")),
}
_ABOUT: Rules = {
    "version": _text(1000, "a text"),
    "net": _TABLE,
    **INPUT,
    "classes": (
        lambda v: isinstance(v, list | tuple) and len(v) <= _LARGE and all(map(_NAME[0], v)),
        f"a list of names of up to 1000 characters, {_LARGE:,} at most",
    ),
    "clip": _TABLE,
    "views": _TABLE,
}
_ENVIRONMENT: Rules = {
    "environment": (
        lambda v: v is None or (_is_table(v, str) and all(len(text) <= 1000 for text in v.values())),
        "a table of texts or none",
    ),
}
CLIP: Rules = {
    "num_frames": _count(10_000, "a number of frames"),
    "stride": _count(100_000, "a number of frames"),
    "target_fps": _or_none(_number(1e-3, 1e6, "a rate")),
    "past_end": _one_of(("loop", "last")),
    "decode_short_side_px": _or_none(_PIXELS),
}
_VIEWS: Rules = {
    "num_clips": _count(100_000, "a number of clips"),
    "spacing": _one_of(SPACINGS),
    "crops": _one_of(("center", "three", "full")),
    "short_side_px": _PIXELS,
    "crop_px": _PIXELS,
    "val": _one_of(("center", "random")),
}
# Checkpoints of earlier versions lack some of these, and a network has a default for others.
_OPTIONAL = {"decode_short_side_px", "val", "network", *_NET} - {"depth", "width", "layout", "norm", "num_classes"}


def network_of(net: Mapping[str, Any]) -> str:
    """The network that a table of arguments is of."""
    return str(net.get("network", I3D_NETWORK))


def is_own(net: Mapping[str, Any]) -> bool:
    """Whether a table of arguments is of somebody's own network."""
    return network_of(net) == OWN_NETWORK


def _tables(net: Mapping[str, Any]) -> dict[str, Rules]:
    nets = {I3D_NETWORK: {"network": _NETWORK, **_NET}, OWN_NETWORK: _OWN_NET}
    # Of a network that is none of these the rule of its name says so.
    return {"net": nets.get(network_of(net), _HUB_NET), "clip": CLIP, "views": _VIEWS}


def check_table(path: str, place: str, table: Mapping[str, Any], rules: Rules, *, needed: Sequence[str] = ()) -> None:
    """Check a table's values by their rules.

    Raises:
        CheckpointError: naming the file, the place and the key that is missing or wrong.
    """
    for name, (fits, what) in rules.items():
        if name in table and not fits(table[name]):
            raise CheckpointError(f"{path}: {place}.{name} must be {what}, got {brief(table[name])}")
    for name in needed:
        if name not in table:
            raise CheckpointError(f"{path}: {place} lacks {name}")


def check_words(path: str, words: Mapping[str, Any]) -> None:
    """Check each word that a checkpoint has on itself; some or all may be missing."""
    check_table(path, KEY, words, _ABOUT | _ENVIRONMENT)
    for name, rules in _tables(words.get("net", {})).items():
        check_table(path, f"{KEY}.{name}", words.get(name, {}), rules)


def brief(value: object) -> str:
    """A value for a message, bounded: it may hold itself a billion times, or be a number of a million digits."""
    try:
        return repr((value if isinstance(value, str) else reprlib.repr(value))[:80])
    except ValueError:
        return "a number of thousands of digits"


# ---- reading -------------------------------------------------------------------------------------


def read_about(content: FileContent) -> dict[str, Any]:
    """What a file of this package says of itself; empty for other files.

    Raises:
        CheckpointError: naming the key that is missing or has a value that cannot be.
    """
    path = content.path
    words: Any = content.content.get(KEY) if isinstance(content.content, Mapping) else None
    if words is None and KEY in content.metadata:
        words = read_json(content, KEY)
    if words is None:
        return {}
    if not isinstance(words, Mapping) or not isinstance(words.get("net"), Mapping):
        raise CheckpointError(f"{path}: {KEY!r} does not describe a network of this package")
    check_words(path, words)
    # What is not known here is not passed on: it may be anything.
    about = {name: words[name] for name in _ABOUT if name in words}
    for name, rules in _tables(words["net"]).items():
        if name in about:
            unknown = [str(key)[:40] for key in sorted(set(about[name]) - set(rules))[:5]]
            if unknown:
                raise CheckpointError(
                    f"{path}: {KEY}.{name} has unknown entries {unknown}. It may be of a later version."
                )
            check_table(path, f"{KEY}.{name}", about[name], rules, needed=[n for n in rules if n not in _OPTIONAL])
    if ("mean" in about) != ("std" in about):
        raise CheckpointError(f"{path}: {KEY} has one of mean and std alone")
    _check_views(path, about)
    return about


def own_error(path: str, about: Mapping[str, Any]) -> CheckpointError:
    """Why a file alone is not enough for somebody's own network, and what is."""
    name = shown(about["net"]["class"])
    return CheckpointError(
        f"{path}: is of {name}, a network of somebody's own, whose code a checkpoint does not hold and which is never "
        "imported from its name. Label videos with it by video-gn predict --run_dir RUN --data.predict VIDEOS, or in "
        f"Python by video_gn.load(PATH, net={name.rpartition('.')[2]}(...))."
    )


def _check_views(path: str, about: Mapping[str, Any]) -> None:
    """Check what clips and views of a video ask for together."""
    clip, views = about.get("clip"), about.get("views")
    if views and views["crops"] != "full" and views["crop_px"] > views["short_side_px"]:
        raise CheckpointError(
            f"{path}: {KEY}.views.crop_px must be at most short_side_px ({views['short_side_px']}), got "
            f"{views['crop_px']}"
        )
    if clip and views:
        side = views["short_side_px" if views["crops"] == "full" else "crop_px"]
        num_views = views["num_clips"] * (3 if views["crops"] == "three" else 1)
        num_bytes = num_views * clip["num_frames"] * 3 * side**2
        if num_bytes > MOST_VIEW_BYTES:
            raise CheckpointError(
                f"{path}: {KEY}.clip and views must ask for at most {MOST_VIEW_BYTES / 1e9:.0f} GB of a video, got "
                f"{num_views} views of {clip['num_frames']} frames of {side} px: {num_bytes / 1e9:.0f} GB"
            )


def read_json(content: FileContent, name: str) -> Any:
    """A value of a safetensors file's metadata.

    Raises:
        CheckpointError: if it is no JSON.
    """
    try:
        return json.loads(content.metadata[name])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{content.path}: its metadata {name!r} is no JSON ({error})") from error
