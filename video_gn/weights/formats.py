"""What a weight file is: its zoo, its tensors under our names, and what its network was.

Told from the content: the names and shapes of the tensors, and what the file says of itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from video_gn.errors import CheckpointError
from video_gn.models.tables import BATCH_FAMILY, DEFAULT_NUM_GROUPS, DEPTHS
from video_gn.weights.about import KEY, metadata_words, own_words, slowfast_words
from video_gn.weights.files import FileContent
from video_gn.weights.keymaps import KEYMAPS, STAGES, Keymap

OWN = "video_gn"
FORMATS = (OWN, *KEYMAPS)
# The norm of a file that holds scale and shift alone, under names that do not tell whose.
UNKNOWN = "unknown"

# Where the zoos keep the network's tensors in a file.
_SECTIONS = ("model_state", "state_dict", "model_state_dict", "model", "net", "blobs")
# What trainers put before a network's own names.
_WRAPPERS = re.compile(r"^(?:(?:module|model|net|_orig_mod)\.)+")

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
        norm: kind, as far as the file tells; "batch" or "group" where only the family can be told; "unknown" where
            scale and shift alone are there, of Group Norm or of folded Batch Norm.
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
        is_named: a person has said the format.
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
    is_named: bool = False

    @property
    def depth(self) -> int | None:
        """50, 101, 152, or None for other numbers of blocks."""
        return next((depth for depth, blocks in DEPTHS.items() if blocks == self.blocks), None)

    def other_network(self) -> str | None:
        """What network this is, where a name gives away that it is none of ours; with that name."""
        for pattern, words in _TELL_TALES:
            for name in self.tensors:
                if re.search(pattern, name):
                    return f"{words} ({name})"
        if self.is_2d and self.affine and not self.is_named:
            name = next(n for n, ours in self.names.items() if ours.startswith("blocks.0.norm"))
            return (
                f"a 2-D network with folded norms ({name} without statistics), as Detectron's R-50.pkl, which strides "
                "elsewhere and takes BGR; name the format 'caffe2' where it is Non-local's"
            )
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
    about = own_words(content)
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
            outside[f"{key} (among the tensors)" if key in outside else key] = _in_words(value)
    if not names:
        raise CheckpointError(_not_known(content.path, state, format))
    outside.pop(KEY, None)
    source = _describe(content, (name, keymap), tensors, names, ignored, outside, about if name == OWN else {})
    return replace(source, is_named=format != "auto")


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
    if name == "torchvision" and norm == "group" and not is_2d:
        norm = UNKNOWN  # a Group Norm network's, or a port of one whose Batch Norms were folded
    # Detectron's and timm's Group Norm networks have 32 groups; other files do not tell.
    groups = ("groups", 32) if norm == "group" and (name == "detectron" or (name == "torchvision" and is_2d)) else None
    # pytorchvideo has no Group Norm networks: such a file is of a network of ours, in any layout.
    layouts = {"slowfast": "slowfast", "mmaction": "mmaction"}
    layout = "slowfast" if name == "pytorchvideo" and norm == "batch" else layouts.get(name)
    words = metadata_words(content) | (slowfast_words(content) if name == "slowfast" else {})
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
        preprocessing=_preprocessing(name, is_2d=is_2d, about=about, words=words),
        classes=tuple(about.get("classes") or ()),
        clip=_clip(name, is_2d=is_2d, words=words),
        about=about,
    )


def norm_family(kind: str) -> str:
    """What weights of a kind of norm fit: "batch" for those with statistics, "none", or "group" for all others."""
    if kind in BATCH_FAMILY:
        return "batch"
    return "none" if kind == "none" else "group"


def group_rule(net: Mapping[str, Any]) -> tuple[str, int] | None:
    """How a network's norms divide the channels of each layer, from its arguments.

    Returns:
        ("groups", G) or ("channels", C/G); None for kinds that pool over samples, and for none.
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
    return "groups", int(net.get("num_groups") or DEFAULT_NUM_GROUPS)


def _preprocessing(name: str, *, is_2d: bool, about: Mapping[str, Any], words: Mapping[str, Any]) -> Preprocessing:
    if about.get("mean") and about.get("std"):
        return Preprocessing(tuple(about["mean"]), tuple(about["std"]))
    if "mean" in words:
        return Preprocessing(words["mean"], words["std"])
    if name == "detectron":
        return _DETECTRON
    return _IMAGENET if name == "mmaction" or (name == "torchvision" and is_2d) else _VIDEO


def _clip(name: str, *, is_2d: bool, words: Mapping[str, Any]) -> tuple[int, int] | None:
    if "clip" in words:
        frames, stride = words["clip"]
        return frames, stride
    return {"slowfast": (8, 8), "pytorchvideo": (8, 8), "mmaction": (32, 2)}.get(name) if not is_2d else None


def _find_state(content: FileContent) -> tuple[dict[str, Any], dict[str, str]]:
    """The network's tensors, and what lies beside them in words."""
    tree = content.content
    if not isinstance(tree, Mapping):
        raise CheckpointError(
            f"{content.path}: holds {_in_words(tree)}, not a table of tensors. Save the network's state_dict()."
        )
    found = {name: tree[name] for name in _SECTIONS if _has_tensors(tree.get(name))}
    if found:
        section = max(found, key=lambda name: _known_names(found[name]))
        outside = {str(k): _in_words(v) for k, v in tree.items() if k != section}
        return {str(k): v for k, v in found[section].items()}, outside
    if not any(isinstance(v, torch.Tensor) for v in tree.values()):
        keys = ", ".join(f"{k!s}: {_in_words(v)}" for k, v in list(tree.items())[:5])
        raise CheckpointError(
            f"{content.path}: holds no tensors where weights are looked for (under {', '.join(_SECTIONS)}, or flat); "
            f"it holds {keys or 'nothing'}"
        )
    return {str(k): v for k, v in tree.items()}, {}


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values())


def _known_names(state: Mapping[Any, Any]) -> int:
    bare = [_WRAPPERS.sub("", str(key)) for key in state]
    return max(sum(table.to_ours(key) is not None for key in bare) for table in KEYMAPS.values())


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


__all__ = ["FORMATS", "OWN", "UNKNOWN", "Preprocessing", "Source", "group_rule", "norm_family", "recognize"]
