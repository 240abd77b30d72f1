"""What a checkpoint says of itself: network, input, classes, clips and views; written, checked and read here.

It lies under `KEY` in a checkpoint, and as JSON under the same name in the metadata of a safetensors file. A file may
hold anything, so everything is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import video_gn
from video_gn.errors import CheckpointError
from video_gn.sampling import SPACINGS

if TYPE_CHECKING:
    from video_gn.weights.files import FileContent

KEY = "video_gn"
# Prefix of the network's tensors in a checkpoint, and that of the classifier's among them.
NET_PREFIX = "net."
CLASSIFIER = "blocks.6.proj."
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
        net_arguments: `I3D.arguments`.
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

Rules = dict[str, tuple[Callable[[Any], bool], str]]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_count_or_none(value: object) -> bool:
    return value is None or _is_count(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_triple(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))


def _is_plain_table(value: object) -> bool:
    plain = (str, int, float, bool, type(None))
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, plain) for k, v in value.items())


_NET: Rules = {
    "depth": (_is_count, "a number of layers"),
    "width": (_is_count, "a number of channels"),
    "layout": (_is_text, "a name"),
    "norm": (_is_text, "a name"),
    "num_classes": (_is_count, "a number of classes"),
    "num_groups": (_is_count_or_none, "a number of groups or none"),
    "channels_per_group": (_is_count_or_none, "a number of channels or none"),
    "norm_options": (
        lambda v: v is None or (_is_plain_table(v) and all(map(_is_number, v.values()))),
        "a table of numbers or none",
    ),
    "drop_path": (lambda v: _is_number(v) and 0 <= v < 1, "a probability"),
}
INPUT: Rules = {
    "mean": (_is_triple, "three numbers"),
    "std": (lambda v: _is_triple(v) and all(s > 0 for s in v), "three numbers above 0"),
}
_ABOUT: Rules = {
    "version": (_is_text, "a text"),
    "net": (
        lambda v: isinstance(v, Mapping) and _is_plain_table({k: w for k, w in v.items() if k != "norm_options"}),
        "a table of plain values",
    ),
    **INPUT,
    "classes": (lambda v: isinstance(v, list | tuple) and all(map(_is_text, v)), "a list of names"),
    "clip": (_is_plain_table, "a table of plain values"),
    "views": (_is_plain_table, "a table of plain values"),
}
CLIP: Rules = {
    "num_frames": (_is_count, "a number of frames"),
    "stride": (_is_count, "a number of frames"),
    "target_fps": (lambda v: v is None or (_is_number(v) and v > 0), "a rate or none"),
    "past_end": (lambda v: v in ("loop", "last"), "loop or last"),
    "decode_short_side_px": (_is_count_or_none, "a length in px or none"),
}
_VIEWS: Rules = {
    "num_clips": (_is_count, "a number of clips"),
    "spacing": (lambda v: v in SPACINGS, f"one of {', '.join(SPACINGS)}"),
    "crops": (lambda v: v in ("center", "three", "full"), "center, three or full"),
    "short_side_px": (_is_count, "a length in px"),
    "crop_px": (_is_count, "a length in px"),
    "val": (lambda v: v in ("center", "random"), "center or random"),
}
_NEEDED_OF_NET = ("depth", "width", "layout", "norm", "num_classes")
_NOT_NEEDED = ("decode_short_side_px", "val")  # checkpoints of earlier versions lack them


def check_table(path: str, place: str, table: Mapping[str, Any], rules: Rules, *, needed: Sequence[str] = ()) -> None:
    """Check a table's values by their rules.

    Raises:
        CheckpointError: naming the file, the place and the key that is missing or wrong.
    """
    for name, (fits, what) in rules.items():
        if name in table and not fits(table[name]):
            raise CheckpointError(f"{path}: {place}.{name} must be {what}, got {str(table[name])[:80]!r}")
        if name in needed and name not in table:
            raise CheckpointError(f"{path}: {place} lacks {name}")


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
    # What is not known here is not passed on: it may be anything.
    about = {name: words[name] for name in _ABOUT if name in words}
    check_table(path, KEY, about, _ABOUT, needed=("net",))
    check_table(path, f"{KEY}.net", about["net"], _NET, needed=_NEEDED_OF_NET)
    for name, rules in (("clip", CLIP), ("views", _VIEWS)):
        if name in about:
            unknown = sorted(set(about[name]) - set(rules))
            if unknown:
                raise CheckpointError(
                    f"{path}: {KEY}.{name} has unknown entries {unknown}. It may be of a later version."
                )
            needed = [n for n in rules if n not in _NOT_NEEDED]
            check_table(path, f"{KEY}.{name}", about[name], rules, needed=needed)
    if ("mean" in about) != ("std" in about):
        raise CheckpointError(f"{path}: {KEY} has one of mean and std alone")
    return about


def read_json(content: FileContent, name: str) -> Any:
    """A value of a safetensors file's metadata.

    Raises:
        CheckpointError: if it is no JSON.
    """
    try:
        return json.loads(content.metadata[name])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{content.path}: its metadata {name!r} is no JSON ({error})") from error
