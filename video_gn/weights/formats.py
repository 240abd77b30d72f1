"""What a weight file is: its zoo, its tensors under our names, and what its network was.

Told from the content: the names and shapes of the tensors, and what the file says of itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from video_gn.checkpoint import KEY
from video_gn.errors import CheckpointError
from video_gn.weights._files import FileContent
from video_gn.weights.keymaps import KEYMAPS, STAGES, Keymap

OWN = "video_gn"
FORMATS = (OWN, *KEYMAPS)

# Where the zoos keep the network's tensors in a file.
_SECTIONS = ("model_state", "state_dict", "model_state_dict", "model", "net", "blobs")
# What trainers put before a network's own names.
_WRAPPERS = re.compile(r"^(?:(?:module|model|net|_orig_mod)\.)+")
# Blocks of res2 to res5. Source: He et al. 2016 (arXiv:1512.03385), Table 1.
_DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}

# What gives other networks away, by the zoos' names before ours are put in their place.
_TELL_TALES = (
    (r"pathway1|s\d_fuse|^t_(conv1|res)|multipathway|slow_path|fast_path", "a SlowFast network of two pathways"),
    (r"nonlocal|non_local", "a network with non-local blocks"),
    (r"conv1\.0\.0\.weight|conv_b\.conv_(t|xy)|conv1_xy|conv_t\.weight", "an R(2+1)D or X3D network"),
    (r"\.attn\.|cls_token|pos_embed|\.attention\.", "a transformer"),
    (r"\.se\.|se_module|b_bn_fc", "a network with squeeze-and-excitation"),
    (r"^(backbone\.)?conv1\.[0-9]+\.", "a ResNet with a deep stem"),
)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a network's input is made with.

    Args:
        mean: of pixels in [0, 1], RGB.
        std: of pixels in [0, 1], RGB.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_VIDEO = Preprocessing((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
# Source: Detectron's detectron/core/config.py, PIXEL_MEANS (BGR, 0..255), standard deviation 1. The scale goes
# into the first convolution, so that the standard deviation here can be the one of all video networks.
_DETECTRON = Preprocessing((122.7717 / 255, 115.9465 / 255, 102.9801 / 255), (0.225, 0.225, 0.225))
DETECTRON_SCALE = 255 * 0.225


@dataclass(frozen=True)
class Source:
    """A weight file's network.

    Args:
        path: of the file.
        container: of `FileContent`.
        format: one of `FORMATS`.
        keymap: the table of its names.
        tensors: its own name -> tensor, of everything that may be a weight, in the file's order.
        names: its own name -> our name, of those that the zoo's table knows.
        ignored: its own name -> why it is no weight.
        outside: what the file holds beside the network's tensors: name -> in words.
        foreign: objects of other libraries, which were not built.
        norm: kind, as far as the file tells; "batch" or "group" where only the family can be told.
        groups: how its norms divide channels, as `group_rule` says it; None where that is not known.
        affine: Batch Norm folded into a scale and a shift, without statistics.
        layout: where it is known.
        blocks: of res2, res3, res4, res5.
        width: channels of the stem; None without a stem.
        num_classes: None without a classifier.
        is_2d: an image network, to be inflated.
        bgr: its input is BGR.
        preprocessing: of its zoo, for RGB input.
        classes: names by number, where they are known.
        clip: frames and stride that it was trained with, where they are known.
        about: what a checkpoint of ours says of itself.
    """

    path: str
    container: str
    format: str
    keymap: Keymap
    tensors: dict[str, torch.Tensor]
    names: dict[str, str]
    ignored: dict[str, str]
    outside: dict[str, str]
    foreign: tuple[str, ...]
    norm: str
    groups: tuple[str, int] | None
    affine: bool
    layout: str | None
    blocks: tuple[int, ...]
    width: int | None
    num_classes: int | None
    is_2d: bool
    bgr: bool
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    clip: tuple[int, int] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def depth(self) -> int | None:
        """50, 101, 152, or None for other numbers of blocks."""
        return _DEPTHS.get(self.blocks)

    def other_network(self) -> str | None:
        """What network this is, where a name gives away that it is none of ours; with that name."""
        for pattern, words in _TELL_TALES:
            for name in self.tensors:
                if re.search(pattern, name):
                    return f"{words} ({name})"
        ours = set(self.names.values())
        if any(".conv_b." in n for n in ours) and not any(".conv_c." in n for n in ours):
            name = next(n for n, o in self.names.items() if ".conv_b." in o)
            return f"a ResNet of basic blocks, such as ResNet-18 ({name} and no third convolution)"
        return None


def recognize(content: FileContent, *, format: str = "auto") -> Source:
    """Tell what a file's network is.

    Args:
        content: of `read_file`; its tensors may be on the meta device.
        format: one of `FORMATS`; "auto" tells it from the content.

    Raises:
        CheckpointError: where there are no tensors, or names of no zoo.
        ValueError: for an unknown format.
    """
    if format not in ("auto", *FORMATS):
        raise ValueError(f"format must be auto, {', '.join(FORMATS)}, got {format!r}. Choose one of these.")
    state, outside = _find_state(content)
    about = _own_words(content)
    if format == OWN and not about:
        raise CheckpointError(f"{content.path}: format is {OWN!r} but the file has no key {KEY!r}. Use format 'auto'.")
    keymap = _best_keymap(content.path, state) if format in ("auto", OWN) else KEYMAPS[format]
    name = OWN if about and format in ("auto", OWN) else keymap.name
    ignored, tensors, names = {}, {}, {}
    for key, value in state.items():
        bare = _WRAPPERS.sub("", key)
        why = keymap.why_ignored(bare)
        if why is not None:
            ignored[key] = why
        elif isinstance(value, torch.Tensor):
            tensors[key] = value
            ours = keymap.to_ours(bare)
            if ours is not None:
                names[key] = ours
        else:
            outside[key] = _in_words(value)
    if not names:
        raise CheckpointError(_not_known(content.path, state, format))
    outside.pop(KEY, None)
    return _describe(content, (name, keymap), tensors, names, ignored, outside, about if name == OWN else {})


def _describe(
    content: FileContent,
    zoo: tuple[str, Keymap],
    tensors: dict[str, torch.Tensor],
    names: dict[str, str],
    ignored: dict[str, str],
    outside: dict[str, str],
    about: dict[str, Any],
) -> Source:
    name, keymap = zoo
    shapes = {ours: tuple(tensors[key].shape) for key, ours in names.items()}
    has_statistics = any(n.endswith(("running_mean", "running_var")) for n in shapes)
    convs = [s for n, s in shapes.items() if ".conv" in n or "branch1_conv" in n]
    is_2d = bool(convs) and all(len(s) == 4 for s in convs)
    affine = name == "caffe2" and not has_statistics
    norm = "batch" if has_statistics or affine else "group"
    # Detectron's and timm's Group Norm networks have 32 groups; other files do not tell.
    groups = ("groups", 32) if norm == "group" and (name == "detectron" or (name == "torchvision" and is_2d)) else None
    layout = {"pytorchvideo": "slowfast", "slowfast": "slowfast", "mmaction": "mmaction"}.get(name)
    words = _slowfast_words(content.content) if name == "slowfast" else {}
    net = about.get("net", {})
    if net:
        norm, layout, groups = net["norm"], net["layout"], group_rule(net)
    stem = shapes.get("blocks.0.conv.weight")
    head = shapes.get("blocks.6.proj.weight")
    return Source(
        path=content.path,
        container=content.container,
        format=name,
        keymap=keymap,
        tensors=tensors,
        names=names,
        ignored=ignored,
        outside=outside,
        foreign=content.foreign,
        norm=norm,
        groups=groups,
        affine=affine,
        layout=None if is_2d else layout,
        blocks=tuple(_count_blocks(shapes, stage) for stage in STAGES),
        width=stem[0] if stem else None,
        num_classes=head[0] if head else None,
        is_2d=is_2d,
        bgr=name == "detectron" or bool(words.get("bgr")),
        preprocessing=_preprocessing(name, is_2d=is_2d, about=about, words=words | _metadata_words(content)),
        classes=tuple(about.get("classes") or ()),
        clip=_clip(name, is_2d=is_2d, words=words),
        about=about,
    )


def group_rule(net: Mapping[str, Any]) -> tuple[str, int] | None:
    """How a network's norms divide the channels of each layer, from its arguments.

    Returns:
        ("groups", G) or ("channels", C/G); None for kinds that pool over samples.
    """
    kind = net.get("norm")
    if kind == "layer":
        return "groups", 1
    if kind == "instance":
        return "channels", 1
    if kind != "group":
        return None
    if net.get("channels_per_group"):
        return "channels", int(net["channels_per_group"])
    return "groups", int(net.get("num_groups") or 32)


def _preprocessing(name: str, *, is_2d: bool, about: Mapping[str, Any], words: Mapping[str, Any]) -> Preprocessing:
    if about.get("mean") and about.get("std"):
        return Preprocessing(tuple(about["mean"]), tuple(about["std"]))
    if "mean" in words:
        return Preprocessing(words["mean"], words["std"])
    if name == "detectron":
        return _DETECTRON
    return _IMAGENET if name == "mmaction" or (name == "torchvision" and is_2d) else _VIDEO


def _clip(name: str, *, is_2d: bool, words: Mapping[str, Any]) -> tuple[int, int] | None:
    if is_2d or name == OWN:
        return None
    if "clip" in words:
        frames, stride = words["clip"]
        return frames, stride
    return (8, 8) if name in ("slowfast", "pytorchvideo") else (32, 2)


def _slowfast_words(content: Any) -> dict[str, Any]:
    """What a SlowFast checkpoint's config says of its input."""
    text = content.get("cfg") if isinstance(content, Mapping) else None
    if not isinstance(text, str):
        return {}
    try:
        data = yaml.safe_load(text)["DATA"]
        words: dict[str, Any] = {"bgr": bool(data.get("REVERSE_INPUT_CHANNEL", False))}
        if "MEAN" in data and "STD" in data:
            mean, std = [tuple(float(v) for v in data[k]) for k in ("MEAN", "STD")]
            # Its means stand in the order in which its network sees the channels.
            words |= {"mean": mean[::-1], "std": std[::-1]} if words["bgr"] else {"mean": mean, "std": std}
        if "NUM_FRAMES" in data and "SAMPLING_RATE" in data:
            words["clip"] = (int(data["NUM_FRAMES"]), int(data["SAMPLING_RATE"]))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return {}
    return words


def _metadata_words(content: FileContent) -> dict[str, Any]:
    """Mean and std that lie beside weights fetched by name."""
    if "preprocessing" not in content.metadata:
        return {}
    try:
        words = json.loads(content.metadata["preprocessing"])
        return {k: tuple(float(v) for v in words[k]) for k in ("mean", "std")}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{content.path}: its metadata 'preprocessing' is not mean and std ({error})") from error


def _find_state(content: FileContent) -> tuple[dict[str, Any], dict[str, str]]:
    """The network's tensors, and what lies beside them in words."""
    tree = content.content
    if not isinstance(tree, Mapping):
        raise CheckpointError(
            f"{content.path}: holds {_in_words(tree)}, not a table of tensors. Save the network's state_dict()."
        )
    for section in _SECTIONS:
        inner = tree.get(section)
        if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            outside = {str(k): _in_words(v) for k, v in tree.items() if k != section}
            return {str(k): v for k, v in inner.items()}, outside
    if not any(isinstance(v, torch.Tensor) for v in tree.values()):
        keys = ", ".join(repr(str(k)) for k in list(tree)[:5])
        raise CheckpointError(f"{content.path}: holds no tensors (its keys: {keys or 'none'})")
    return {str(k): v for k, v in tree.items()}, {}


def _own_words(content: FileContent) -> dict[str, Any]:
    words: Any = None
    if isinstance(content.content, Mapping):
        words = content.content.get(KEY)
    if words is None and KEY in content.metadata:
        try:
            words = json.loads(content.metadata[KEY])
        except ValueError as error:
            raise CheckpointError(f"{content.path}: its metadata {KEY!r} is no JSON ({error})") from error
    if words is None:
        return {}
    needed = {"norm", "layout", "depth", "width"}
    if not isinstance(words, Mapping) or not needed <= set(words.get("net") or ()):
        raise CheckpointError(f"{content.path}: {KEY!r} does not describe a network of this package")
    return dict(words)


def _best_keymap(path: str, state: Mapping[str, Any]) -> Keymap:
    bare = [_WRAPPERS.sub("", key) for key in state]
    counts = {name: sum(table.to_ours(key) is not None for key in bare) for name, table in KEYMAPS.items()}
    best = max(counts, key=lambda name: counts[name])
    if counts[best] == 0:
        raise CheckpointError(_not_known(path, state, "auto"))
    return KEYMAPS[best]


def _not_known(path: str, state: Mapping[str, Any], format: str) -> str:
    for pattern, words in _TELL_TALES:
        for name in state:
            if re.search(pattern, name):
                return f"{path}: is {words} ({name}), not a ResNet of bottleneck blocks that an I3D can be made of"
    first = ", ".join(list(state)[:3])
    known = "any known zoo" if format == "auto" else f"the zoo {format!r}"
    return f"{path}: no tensor has a name of {known} ({', '.join(KEYMAPS)}); its first names: {first}"


def _count_blocks(shapes: Mapping[str, Sequence[int]], stage: str) -> int:
    numbers = [int(m[1]) for n in shapes if (m := re.match(rf"blocks\.{stage}\.res_blocks\.(\d+)\.", n))]
    return max(numbers, default=-1) + 1


def _in_words(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping | list | tuple):
        count = _count_tensors(value)
        return f"{len(value)} entries" + (f" with {count} tensors" if count else "")
    return type(value).__name__


def _count_tensors(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return 1
    if isinstance(value, Mapping):
        return sum(_count_tensors(v) for v in value.values())
    return sum(_count_tensors(v) for v in value) if isinstance(value, list | tuple) else 0


__all__ = ["FORMATS", "OWN", "Preprocessing", "Source", "group_rule", "recognize"]
