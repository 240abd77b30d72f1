"""Reads what an exported ONNX file says of itself, before any engine sees the file.

An ONNX file holds tensors and the names of operators, no code. It may name other files for its tensors, or operators of
a vendor: both are refused.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from video_gn.errors import CheckpointError, ConfigError
from video_gn.models import I3D_NETWORK
from video_gn.shown import count, shown
from video_gn.weights.about import KEY, is_own, network_of, own_error, read_about
from video_gn.weights.files import AGAIN, CHECKSUM, NO_CHECKSUM, FileContent

INPUT, OUTPUTS = "frames", ("scores", "features")
# An entry of the metadata, as protobuf writes it: fields 1 and 2, each with its length.
_CHECKSUM = re.compile(rb"\x0a%c%b\x12\x08([0-9a-f]{8})" % (len(CHECKSUM), CHECKSUM.encode()))


def needed(module: str, *, extra: str) -> Any:
    """A module of an extra.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} is not installed. Install it: pip install 'video-gn[{extra}]'") from error


def read_onnx_about(path: Path, *, labels: Sequence[str] = (), extra: str = "onnx") -> dict[str, Any]:
    """What an exported file says of its network, input, classes, clips and views, checked as a checkpoint's own words.

    Args:
        path: File that `export` has written.
        labels: Class names by number instead of its own.
        extra: Extra that brings the package onnx.

    Raises:
        CheckpointError: for a file that is missing, damaged, or another's.
        ConfigError: if the package onnx is not installed.
    """
    about, _ = _read(path, extra=extra)
    num_classes, classes = about["net"]["num_classes"], list(labels or about.get("classes", ()))
    if classes and len(classes) != num_classes:
        raise CheckpointError(f"{path}: has {num_classes} classes, but {len(classes)} labels are given")
    return about | ({"classes": classes} if classes else {})


def describe_onnx(path: Path) -> str:
    """Describe an exported file in lines for a terminal; errors as `read_onnx_about`."""
    about, model = _read(path, extra="onnx")
    net, clip, views, classes = about["net"], about["clip"], about["views"], about.get("classes", ())
    nodes = Counter(node.op_type for node in model.graph.node)
    quantized = nodes["QuantizeLinear"]
    groups = next((f", {name} {net[name]}" for name in ("num_groups", "channels_per_group") if net.get(name)), "")
    blocks = f", non-local blocks {net['nonlocal_blocks']}" if net.get("nonlocal_blocks") else ""
    is_i3d = network_of(net) == I3D_NETWORK
    network = f"ResNet-{net['depth']}" if is_i3d else f"{net['network']} of pytorchvideo"
    rows = {
        "format": f"exported by video_gn {about.get('version', '')}".rstrip(),
        "container": f"onnx, opset {model.opset_import[0].version}",
        "precision": f"int8 ({quantized} quantized activations), the rest float32" if quantized else "float32",
        "network": f"{network}, width {net['width']}; {nodes['Conv']} convolutions{blocks}",
        "norms": f"{net['norm']}{groups}",
        "layout": net["layout"] if is_i3d else "none: layouts are I3D's",
        "classes": f"{net['num_classes']}: {', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''}".rstrip(": "),
        "input": "uint8, RGB; "
        + ", ".join(f"{name} [{', '.join(f'{v:.4g}' for v in about[name])}]" for name in ("mean", "std")),
        "clip": f"{count(clip['num_frames'], 'frame')} at stride {clip['stride']}",
        "views": f"{count(views['num_clips'], 'clip')}, crops {views['crops']} of {views['crop_px']} px, short side "
        f"{views['short_side_px']} px",
    }
    width = max(map(len, rows))
    return "\n".join([str(path), *(shown(f"  {name:{width}}  {value}") for name, value in rows.items())])


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _read(path: Path, *, extra: str) -> tuple[dict[str, Any], Any]:
    """What a file says of itself, and its model, both checked."""
    onnx = needed("onnx", extra=extra)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Check the path") from error
    found = find_checksum(data)
    if found is not None and int(data[found : found + 8], 16) != checksum(data, found):
        raise CheckpointError(f"{path}: damaged: its checksum is wrong. {AGAIN}, in full")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:
        raise CheckpointError(f"{path}: damaged, or no ONNX file. {AGAIN}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    about = read_about(FileContent(str(path), "onnx", {}, metadata=metadata))
    if is_own(about.get("net", {})):  # `export` refuses it
        raise own_error(str(path), about)
    missing = [name for name in ("net", "mean", "clip", "views") if name not in about]
    if found is None or missing:
        what = f"{KEY}.{missing[0]}" if about and missing else KEY if missing else CHECKSUM
        raise CheckpointError(
            f"{path}: does not say how its clips are made (metadata {what}). Write it with video-gn export CHECKPOINT "
            f"{path.name}"
        )
    _check_graph(path, model, onnx)
    return about, model


def _check_graph(path: Path, model: Any, onnx: Any) -> None:
    """Refuse what `export` does not write: tensors in other files, operators beside ONNX's own."""
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise CheckpointError(f"{path}: keeps its tensors in other files. Export it anew with video-gn export.")
    domains = {opset.domain for opset in model.opset_import} - {"", "ai.onnx"}
    if domains or model.functions:
        what = f"operators of {sorted(domains)[0]!r}" if domains else "functions of its own"
        raise CheckpointError(f"{path}: has {what}, which no engine here knows. Export it anew with video-gn export.")


# ---- checksum ------------------------------------------------------------------------------------


def find_checksum(data: bytes) -> int | None:
    """The place of the checksum's eight digits; None in another's file."""
    places = [found.start(1) for found in _CHECKSUM.finditer(data)]
    return places[-1] if places else None


def checksum(data: bytes, place: int) -> int:
    """CRC-32 of a file with zeros in the place of its digits."""
    view = memoryview(data)
    return zlib.crc32(view[place + 8 :], zlib.crc32(NO_CHECKSUM.encode(), zlib.crc32(view[:place])))
