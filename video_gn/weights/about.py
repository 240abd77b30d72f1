"""What a weight file says of itself, checked: a file may say anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from video_gn.errors import CheckpointError
from video_gn.sampling import SPACINGS
from video_gn.weights.files import FileContent

# Where a checkpoint of this package says what it is, and what its network's tensors bear before their names.
KEY = "video_gn"
NET_PREFIX = "net."


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_triple(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))


def _is_plain_table(value: object) -> bool:
    plain = (str, int, float, bool, type(None))
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, plain) for k, v in value.items())


_OPTIONAL_COUNT: Callable[[object], bool] = lambda value: value is None or _is_count(value)  # noqa: E731
_Rules = dict[str, tuple[Callable[[object], bool], str]]

_NET: _Rules = {
    "depth": (_is_count, "a number of layers"),
    "width": (_is_count, "a number of channels"),
    "layout": (lambda v: isinstance(v, str), "a name"),
    "norm": (lambda v: isinstance(v, str), "a name"),
    "num_classes": (_is_count, "a number of classes"),
    "num_groups": (_OPTIONAL_COUNT, "a number of groups or none"),
    "channels_per_group": (_OPTIONAL_COUNT, "a number of channels or none"),
    "norm_options": (
        lambda v: v is None or (_is_plain_table(v) and all(map(_is_number, v.values()))),  # type: ignore[attr-defined]
        "a table of numbers or none",
    ),
    "drop_path": (lambda v: _is_number(v) and 0 <= v < 1, "a probability"),  # type: ignore[operator]
}
_NOT_NEEDED = ("decode_short_side_px", "val")
_NEEDED = ("depth", "width", "layout", "norm", "num_classes")
_ABOUT: _Rules = {
    "version": (lambda v: isinstance(v, str), "a text"),
    "net": (
        lambda v: isinstance(v, Mapping) and _is_plain_table({k: w for k, w in v.items() if k != "norm_options"}),
        "a table of plain values",
    ),
    "mean": (_is_triple, "three numbers"),
    "std": (lambda v: _is_triple(v) and all(s > 0 for s in v), "three numbers above 0"),  # type: ignore[attr-defined]
    "classes": (lambda v: isinstance(v, list | tuple) and all(isinstance(n, str) for n in v), "a list of names"),
    "clip": (_is_plain_table, "a table of plain values"),
    "views": (_is_plain_table, "a table of plain values"),
}
_CLIP: _Rules = {
    "num_frames": (_is_count, "a number of frames"),
    "stride": (_is_count, "a number of frames"),
    "target_fps": (lambda v: v is None or (_is_number(v) and v > 0), "a rate or none"),  # type: ignore[operator]
    "past_end": (lambda v: v in ("loop", "last"), "loop or last"),
    "decode_short_side_px": (_OPTIONAL_COUNT, "a length in px or none"),
}
_VIEWS: _Rules = {
    "num_clips": (_is_count, "a number of clips"),
    "spacing": (lambda v: v in SPACINGS, f"one of {', '.join(SPACINGS)}"),
    "crops": (lambda v: v in ("center", "three", "full"), "center, three or full"),
    "short_side_px": (_is_count, "a length in px"),
    "crop_px": (_is_count, "a length in px"),
    "val": (lambda v: v in ("center", "random"), "center or random"),
}


def own_words(content: FileContent) -> dict[str, Any]:
    """What a checkpoint of ours says of itself; empty for other files.

    Args:
        content: of `read_file`.

    Raises:
        CheckpointError: naming the key that is missing or says what cannot be.
    """
    words: Any = content.content.get(KEY) if isinstance(content.content, Mapping) else None
    if words is None and KEY in content.metadata:
        try:
            words = json.loads(content.metadata[KEY])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{content.path}: its metadata {KEY!r} is no JSON ({error})") from error
    if words is None:
        return {}
    path = content.path
    if not isinstance(words, Mapping) or not isinstance(words.get("net"), Mapping):
        raise CheckpointError(f"{path}: {KEY!r} does not describe a network of this package")
    # What is not known here is not passed on: it may be anything.
    about = {name: words[name] for name in _ABOUT if name in words}
    _check(path, KEY, about, _ABOUT, needed=("net",))
    _check(path, f"{KEY}.net", about["net"], _NET, needed=_NEEDED)
    for name, rules in (("clip", _CLIP), ("views", _VIEWS)):
        if name in about:
            unknown = sorted(set(about[name]) - set(rules))
            if unknown:
                raise CheckpointError(
                    f"{path}: {KEY}.{name} has unknown entries {unknown}. It may be of a later version."
                )
            _check(path, f"{KEY}.{name}", about[name], rules, needed=tuple(n for n in rules if n not in _NOT_NEEDED))
    if ("mean" in about) != ("std" in about):
        raise CheckpointError(f"{path}: {KEY} has one of mean and std alone")
    return about


def _check(path: str, place: str, words: Mapping[str, Any], rules: _Rules, *, needed: tuple[str, ...]) -> None:
    for name, (fits, what) in rules.items():
        if name in words and not fits(words[name]):
            raise CheckpointError(f"{path}: {place}.{name} must be {what}, got {str(words[name])[:80]!r}")
        if name in needed and name not in words:
            raise CheckpointError(f"{path}: {place} does not tell {name}")


def slowfast_words(content: FileContent) -> dict[str, Any]:
    """What a SlowFast checkpoint's config says of its input: bgr, mean, std (RGB), clip; what it tells of them.

    Raises:
        CheckpointError: for values that no input can have.
    """
    text = content.content.get("cfg") if isinstance(content.content, Mapping) else None
    if not isinstance(text, str):
        return {}
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}  # its weights are still what they are
    data = tree.get("DATA") if isinstance(tree, dict) else None
    if not isinstance(data, dict):
        return {}
    rules: _Rules = {
        "MEAN": _ABOUT["mean"],
        "STD": _ABOUT["std"],
        "NUM_FRAMES": _CLIP["num_frames"],
        "SAMPLING_RATE": _CLIP["stride"],
        "REVERSE_INPUT_CHANNEL": (lambda v: isinstance(v, bool), "true or false"),
    }
    _check(content.path, "cfg.DATA", data, rules, needed=())
    words: dict[str, Any] = {"bgr": data.get("REVERSE_INPUT_CHANNEL", False)}
    if "MEAN" in data and "STD" in data:
        # They stand in the order in which its network sees the channels.
        step = -1 if words["bgr"] else 1
        words |= {"mean": tuple(data["MEAN"])[::step], "std": tuple(data["STD"])[::step]}
    if "NUM_FRAMES" in data and "SAMPLING_RATE" in data:
        words["clip"] = (data["NUM_FRAMES"], data["SAMPLING_RATE"])
    return words


def metadata_words(content: FileContent) -> dict[str, Any]:
    """Mean and std that lie beside weights fetched by name.

    Raises:
        CheckpointError: where they are no such thing.
    """
    if "preprocessing" not in content.metadata:
        return {}
    try:
        words = json.loads(content.metadata["preprocessing"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{content.path}: its metadata 'preprocessing' is no JSON ({error})") from error
    if not isinstance(words, dict):
        raise CheckpointError(f"{content.path}: its metadata 'preprocessing' is no table")
    rules = {name: _ABOUT[name] for name in ("mean", "std")}
    _check(content.path, "preprocessing", words, rules, needed=("mean", "std"))
    return {name: tuple(words[name]) for name in rules}
