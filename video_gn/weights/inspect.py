"""Describes a weight file in lines for a terminal; reads only the header of safetensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from video_gn.models.tables import I3D_NETWORK, OWN_NETWORK
from video_gn.shown import count, shown
from video_gn.weights.about import UNKNOWN
from video_gn.weights.files import read_file
from video_gn.weights.formats import Source, norm_family, recognize, rule_in_words
from video_gn.weights.keymaps import KEYMAPS
from video_gn.weights.named import find_weights
from video_gn.weights.zoos import other_network


def inspect(path: str | Path, *, format: str = "auto", tensors: bool = False) -> str:
    """Describe a weight file, or PACKAGE:NAME, in lines for a terminal; `tensors` lists every tensor.

    Raises:
        CheckpointError: for a file that cannot be read or is of no known zoo.
    """
    source = recognize(read_file(find_weights(path), header_only=True), format=format, takes_own=True)
    rows = _rows(source)
    width = max(len(name) for name, _ in rows)
    lines = [str(path), *(f"  {name:{width}}  {value}" for name, value in rows)]
    if tensors:
        lines += ["tensors", *_tensor_lines(source)]
    return "\n".join(map(shown, lines))


def _rows(source: Source) -> list[tuple[str, str]]:
    pixels = source.preprocessing
    title = KEYMAPS[source.format].title if source.format in KEYMAPS else source.format
    classes = "none" if source.num_classes is None else str(source.num_classes)
    if source.classes:
        classes += f": {', '.join(source.classes[:4])}{', ...' if len(source.classes) > 4 else ''}"
    rows = [
        ("format", title if title == source.format else f"{title} ({source.format})"),
        ("container", source.container),
        ("tensors", _tensors(source)),
        ("network", _network(source)),
        *([] if source.network == OWN_NETWORK else [("norms", _norms(source)), ("layout", _layout(source))]),
        ("classes", classes),
        ("input", f"{'BGR' if source.bgr else 'RGB'}; mean {_numbers(pixels.mean)}, std {_numbers(pixels.std)}"),
    ]
    if source.clip is not None:
        rows.append(("clip", f"{count(source.clip[0], 'frame')} at stride {source.clip[1]}"))
    elif source.about.get("clip"):
        clip = source.about["clip"]
        rows.append(("clip", f"{count(clip['num_frames'], 'frame')} at stride {clip['stride']}"))
    unknown = [key for key in source.tensors if key not in source.names]
    for name, keys in (
        ("not known", unknown),
        ("no weights", list(source.ignored)),
        ("also has", list(source.outside)),
    ):
        if keys:
            rows.append((name, _listed(keys)))
    if source.foreign:
        rows.append(("foreign", f"{_listed(list(source.foreign))} (not built)"))
    return rows


def _tensors(source: Source) -> str:
    numbers = sum(t.numel() for t in source.tensors.values())
    types = Counter(str(t.dtype).removeprefix("torch.") for t in source.tensors.values())
    return f"{len(source.tensors)}, {numbers / 1e6:.2f} M numbers ({', '.join(types)})"


def _layout(source: Source) -> str:
    if source.network != I3D_NETWORK:
        return "none: layouts are I3D's"
    return source.layout or ("any: an image network" if source.is_2d else "not in the file")


def _network(source: Source) -> str:
    if source.network == OWN_NETWORK:
        return f"{source.about['net']['class']}, somebody's own; load it: video_gn.load(FILE, net=...)"
    if source.network != I3D_NETWORK:
        return f"{source.network} of pytorchvideo, width {source.width}"
    other = other_network(source)
    if other is not None or source.depth is None:
        return f"{other or f'blocks {source.blocks}'}: cannot be loaded into an I3D"
    width = f", width {source.width}" if source.width != 64 else ""
    weighting = {UNKNOWN: "softmax or dot_product"}.get(str(source.nonlocal_blocks), source.nonlocal_blocks)
    blocks = f", non-local blocks ({weighting})" if weighting is not None else ""
    return f"ResNet-{source.depth}, {'2-D, to be inflated' if source.is_2d else '3-D'}{width}{blocks}"


def _norms(source: Source) -> str:
    if source.affine:
        return "batch, folded into scale and shift"
    if source.norm == UNKNOWN:
        return "scale and shift alone: Group Norm, or Batch Norm folded into them"
    if source.groups is None:
        return f"{source.norm} (number of groups unknown)" if norm_family(source.norm) == "group" else source.norm
    most = "up to " if source.network != I3D_NETWORK and source.norm == "group" else ""
    return f"{source.norm}, {most}{rule_in_words(source.groups)}"


def _numbers(values: Any) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in values) + "]"


def _listed(keys: list[str]) -> str:
    return f"{len(keys)}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"


def _tensor_lines(source: Source) -> list[str]:
    width = max(len(key) for key in source.tensors)
    return [
        f"  {key:{width}}  {str(t.dtype).removeprefix('torch.'):8}  {tuple(t.shape)!s:22}  "
        f"{'-> ' + source.names[key] if key in source.names else 'not known'}"
        for key, t in source.tensors.items()
    ]
