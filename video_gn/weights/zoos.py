"""What the files of other zoos leave unsaid: norms, layout, preprocessing, clips, and how each zoo tests.

Each zoo's names of tensors are in `keymaps`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import yaml

from video_gn.damage import bounded_yaml
from video_gn.errors import CheckpointError
from video_gn.lists.class_names import kinetics400
from video_gn.models.tables import HUB_NETWORKS, I3D_NETWORK, NonlocalName
from video_gn.weights.about import CLIP, INPUT, UNKNOWN, VIDEO_INPUT, Preprocessing, check_table, read_json
from video_gn.weights.files import FileContent
from video_gn.weights.keymaps import KEYMAPS, Keymap

if TYPE_CHECKING:
    from video_gn.weights.formats import Source

_IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Source: Detectron's detectron/core/config.py, PIXEL_MEANS (BGR, 0..255), standard deviation 1. The scale goes
# into the first convolution, so that the standard deviation here can be the one of all video networks.
_DETECTRON = Preprocessing((122.7717 / 255, 115.9465 / 255, 102.9801 / 255), VIDEO_INPUT.std)
DETECTRON_SCALE = 255 * 0.225

# Frames and stride of the zoos that have one setting.
_CLIPS = {"slowfast": (8, 8), "pytorchvideo": (8, 8), "mmaction": (32, 2)}

# How each zoo tests, by the layout of its networks: where clips start, the rate that their stride counts in, and
# what stands past a video's end. Source: the functions that `video_gn.sampling.test_clips` names.
_PROTOCOLS: dict[str, tuple[str, float | None, str]] = {
    "nonlocal": ("nonlocal", None, "loop"),
    "slowfast": ("slowfast", 30.0, "last"),
    "mmaction": ("uniform", None, "loop"),
}

# The hub's networks: what their shortest clips, in frames and stride, and views, short side and crop in px, are there.
# Source: pytorchvideo's model zoo, and its page of X3D on pytorch.org/hub.
_HUB_CLIPS = {"x3d_s": (13, 6, 182, 182), "r2plus1d_r50": (16, 4, 256, 224), "slow_r50": (8, 8, 256, 224)}

# What gives other networks away, by the zoos' names before ours are put in their place.
_TELL_TALES = (
    (r"pathway1|s\d_fuse|^t_(conv1|res)|multipathway|slow_path|fast_path", "a SlowFast network of two pathways"),
    (r"conv1\.0\.0\.weight|conv_b\.conv_(t|xy)|conv1_xy|conv_t\.weight", "an R(2+1)D or X3D network"),
    (r"\.attn\.|cls_token|pos_embed|\.attention\.", "a transformer"),
    (r"\.se\.|se_module|b_bn_fc", "a network with squeeze-and-excitation"),
    (r"^(backbone\.)?conv1\.[0-9]+\.", "a ResNet with a deep stem"),
)


# ---- names ---------------------------------------------------------------------------------------


def num_known(names: Sequence[str]) -> int:
    """How many of the names the zoo knows that knows most of them."""
    return max(_counts(names).values())


def choose_keymap(path: str, names: Mapping[str, str], format: str) -> Keymap:
    """The table of a zoo's names; for "auto" of the zoo that knows most of the bare names, the values of `names`.

    Raises:
        CheckpointError: if no name is known.
    """
    if format in KEYMAPS:
        return KEYMAPS[format]
    counts = _counts(list(names.values()))
    best = max(counts, key=lambda name: counts[name])
    if counts[best] == 0:
        raise CheckpointError(not_known(path, names, "auto"))
    return KEYMAPS[best]


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {zoo: sum(table.to_ours(name) is not None for name in names) for zoo, table in KEYMAPS.items()}


def _tell_tale(names: Iterable[str]) -> str | None:
    found = ((words, name) for pattern, words in _TELL_TALES for name in names if re.search(pattern, name))
    return next((f"{words} ({name})" for words, name in found), None)


def not_known(path: str, names: Mapping[str, Any], format: str) -> str:
    """The error's text for a file without a name of the zoo, or of any zoo."""
    other = _tell_tale(names)
    if other is not None:
        return f"{path}: is {other}, not a ResNet of bottleneck blocks that an I3D can be made of"
    first = ", ".join(list(names)[:3])
    known = "any known zoo" if format == "auto" else f"the zoo {format!r}"
    return f"{path}: no tensor has a name of {known} ({', '.join(KEYMAPS)}); its first names: {first}"


def other_network(source: Source) -> str | None:
    """Which network this is, with the name that gives it away; None if nothing shows that it is not ours."""
    other = _tell_tale(source.tensors)
    if other is not None:
        return other
    if source.is_2d and source.affine and not source.is_named:
        name = next(n for n, ours in source.names.items() if ours.startswith("blocks.0.norm"))
        return (
            f"a 2-D network with folded norms ({name} without statistics), as Detectron's R-50.pkl, which strides "
            "elsewhere and takes BGR; name the format 'caffe2' where it is Non-local's"
        )
    ours = set(source.names.values())
    if any(".conv_b." in n for n in ours) and not any(".conv_c." in n for n in ours):
        name = next(n for n, o in source.names.items() if ".conv_b." in o)
        return f"a ResNet of basic blocks, such as ResNet-18 ({name} and no third convolution)"
    return None


def hub_network(state: Mapping[str, Any]) -> str:
    """Which network of pytorchvideo's hub has tensors of these names and shapes; "i3d" if none has.

    X3D-XS, S and M differ in clips alone.
    """
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    marks = {
        "x3d_s": "blocks.5.pool.pre_conv.weight" in shapes
        and "blocks.4.res_blocks.6.branch2.conv_a.weight" in shapes
        and "blocks.4.res_blocks.7.branch2.conv_a.weight" not in shapes,
        "r2plus1d_r50": "blocks.1.res_blocks.0.branch2.conv_b.conv_t.weight" in shapes,
        "slow_r50": "blocks.5.proj.weight" in shapes and shapes.get("blocks.0.conv.weight", ())[2:] == (1, 7, 7),
    }
    return next((name for name in HUB_NETWORKS if marks[name]), I3D_NETWORK)


def hub_fields(network: str, shapes: Mapping[str, Sequence[int]], *, is_own: bool) -> dict[str, Any]:
    """Those fields of a `Source` that are other than an I3D's, of a checkpoint of ours or of the hub's file."""
    stem = shapes.get("blocks.0.conv.conv_t.weight" if network == "x3d_s" else "blocks.0.conv.weight")
    width = None if not stem else stem[0] // 2 if network == "x3d_s" else stem[0]
    # No blocks: they would be those of a ResNet-50, and give it a depth.
    fields = {"network": network, "layout": None, "blocks": (), "width": width}
    return fields | ({} if is_own else {"clip": _HUB_CLIPS[network][:2]})


# ---- habits --------------------------------------------------------------------------------------


def habits(content: FileContent, zoo: str, *, has_statistics: bool, is_2d: bool) -> dict[str, Any]:
    """Those fields of a `Source` that follow from the zoo: norm, groups, affine, layout, bgr, preprocessing, clip.

    Raises:
        CheckpointError: if what the file says of its input cannot be.
    """
    affine = zoo == "caffe2" and not has_statistics
    norm = "batch" if has_statistics or affine else "group"
    if zoo == "torchvision" and norm == "group" and not is_2d:
        norm = UNKNOWN  # a Group Norm network's, or a port of one whose Batch Norms were folded
    # Detectron's and timm's Group Norm networks have 32 groups; other files do not say.
    has_32_groups = norm == "group" and (zoo == "detectron" or (zoo == "torchvision" and is_2d))
    # pytorchvideo has no Group Norm networks: such a file is of a network of ours, in any layout.
    layouts = {"slowfast": "slowfast", "mmaction": "mmaction"}
    words = _input_in_metadata(content) | (_slowfast_config(content) if zoo == "slowfast" else {})
    return {
        "norm": norm,
        "groups": ("groups", 32) if has_32_groups else None,
        "affine": affine,
        "layout": "slowfast" if zoo == "pytorchvideo" and norm == "batch" else layouts.get(zoo),
        "bgr": zoo == "detectron" or bool(words.get("bgr")),
        "preprocessing": _preprocessing(zoo, is_2d=is_2d, words=words),
        "clip": words["clip"] if "clip" in words else None if is_2d else _CLIPS.get(zoo),
    }


def _preprocessing(zoo: str, *, is_2d: bool, words: Mapping[str, Any]) -> Preprocessing:
    if "mean" in words:
        return Preprocessing(words["mean"], words["std"])
    if zoo == "detectron":
        return _DETECTRON
    return _IMAGENET if zoo == "mmaction" or (zoo == "torchvision" and is_2d) else VIDEO_INPUT


def nonlocal_weighting(content: FileContent, zoo: str, *, affine: bool) -> str:
    """The weighting of non-local blocks, if folded norms or the config beside the weights tell it; else `UNKNOWN`."""
    if affine:
        return "softmax_4_frames"
    if zoo == "slowfast":
        word = _slowfast_section(content, "NONLOCAL").get("INSTANTIATION")
        return str(word) if word in get_args(NonlocalName) else UNKNOWN
    meta = content.content.get("meta") if isinstance(content.content, Mapping) else None
    text = meta.get("cfg") if zoo == "mmaction" and isinstance(meta, Mapping) else None
    match = re.search(r"\bmode='(embedded_gaussian|dot_product)'", text) if isinstance(text, str) else None
    return UNKNOWN if match is None else {"embedded_gaussian": "softmax", "dot_product": "dot_product"}[match[1]]


def _slowfast_section(content: FileContent, section: str) -> Mapping[str, Any]:
    """A table of the config in a SlowFast checkpoint; empty without one."""
    text = content.content.get("cfg") if isinstance(content.content, Mapping) else None
    if not isinstance(text, str):
        return {}
    try:
        tree = bounded_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}  # its weights are still what they are
    table = tree.get(section) if isinstance(tree, dict) else None
    return table if isinstance(table, dict) else {}


def _slowfast_config(content: FileContent) -> dict[str, Any]:
    """Of bgr, mean, std (RGB) and clip those that a SlowFast checkpoint's config tells."""
    data = _slowfast_section(content, "DATA")
    rules = {
        "MEAN": INPUT["mean"],
        "STD": INPUT["std"],
        "NUM_FRAMES": CLIP["num_frames"],
        "SAMPLING_RATE": CLIP["stride"],
        "REVERSE_INPUT_CHANNEL": (lambda v: isinstance(v, bool), "true or false"),
    }
    check_table(content.path, "cfg.DATA", data, rules)
    words: dict[str, Any] = {"bgr": data.get("REVERSE_INPUT_CHANNEL", False)}
    if "MEAN" in data and "STD" in data:
        # They stand in the order in which its network sees the channels.
        step = -1 if words["bgr"] else 1
        words |= {"mean": tuple(data["MEAN"])[::step], "std": tuple(data["STD"])[::step]}
    if "NUM_FRAMES" in data and "SAMPLING_RATE" in data:
        words["clip"] = (data["NUM_FRAMES"], data["SAMPLING_RATE"])
    return words


def _input_in_metadata(content: FileContent) -> dict[str, Any]:
    """Mean and std that lie beside weights fetched by name."""
    if "preprocessing" not in content.metadata:
        return {}
    words = read_json(content, "preprocessing")
    if not isinstance(words, dict):
        raise CheckpointError(f"{content.path}: its metadata 'preprocessing' is no table")
    check_table(content.path, "preprocessing", words, INPUT, needed=tuple(INPUT))
    return {name: tuple(words[name]) for name in INPUT}


# ---- classes and test ----------------------------------------------------------------------------


def zoo_classes(source: Source) -> tuple[str, ...]:
    """Kinetics' names for a video network of 400 classes; none for others."""
    is_kinetics = source.num_classes == 400 and not source.is_2d and not source.about
    return kinetics400() if is_kinetics else ()


def zoo_protocol(source: Source, layout: str | None) -> dict[str, Any]:
    """The zoo's ten clips, center crop, as `clip` and `views` of a checkpoint of ours."""
    if source.network != I3D_NETWORK:
        short_side_px, crop_px = _HUB_CLIPS[source.network][2:]
        sizes, layout = {"short_side_px": short_side_px, "crop_px": crop_px}, "slowfast"
    else:
        sizes = {"short_side_px": 256, "crop_px": 224}
    # Caffe2 files and ports do not say: SlowFast's zoo has 8 x 8, Non-local's 32 x 2, or 128 x 1
    # where norms are folded.
    num_frames, stride = source.clip or ((8, 8) if layout == "slowfast" else (128, 1) if source.affine else (32, 2))
    spacing, target_fps, past_end = _PROTOCOLS[layout or "nonlocal"]
    return {
        "clip": {"num_frames": num_frames, "stride": stride, "target_fps": target_fps, "past_end": past_end},
        "views": {
            "num_clips": 10,
            "spacing": spacing,
            "crops": "center",
            **sizes,
            "val": "center",
        },
    }
