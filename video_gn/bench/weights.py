"""`video-gn bench weights`: the cost of loading, against the plain loaders of torch, safetensors and pickle.

Files of a ResNet-50 I3D with 400 classes (28 million parameters) are made; each loader puts them into the same
network, in turns, on one thread. The plain loaders only check names and shapes; pickle's runs the code in the file.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from video_gn.bench.measuring import (
    describe_machine,
    head_lines,
    one_thread,
    ratio_of_medians,
    reset_peak,
    resident_bytes,
    side_by_side,
    summarize,
    timed,
)
from video_gn.models.resnet3d import I3D, i3d
from video_gn.weights import load_into
from video_gn.weights.keymaps import KEYMAPS

SECONDS_TARGET = 2.0
MEMORY_TARGET = 3.0


def bench_weights(*, rounds: int, width: int = 64) -> dict[str, Any]:
    """Measure the loading of each kind of file; the figures are for `format_page` and json.

    The targets hold for a network whose stem has 64 channels.
    """
    with tempfile.TemporaryDirectory(prefix="video-gn-bench-") as directory, one_thread():
        net = i3d(50, layout="slowfast", norm="batch", num_classes=400, width=width)
        files = _write(Path(directory), net)
        result: dict[str, Any] = {
            "machine": describe_machine(),
            "rounds": rounds,
            "num_parameters": sum(p.numel() for p in net.parameters()),
            "files": {},
        }
        # Memory first, each in its own process: memory that an earlier load gave back would hide a later one's.
        peaks = {name: _peaks(net, path, plain) for name, (path, plain) in files.items()}
        for name, (path, plain) in files.items():
            result["files"][name] = {**_measure(net, path, plain, rounds), "memory": peaks[name]}
    return result


Plain = Callable[[I3D, Path], object]


def _write(directory: Path, net: I3D) -> dict[str, tuple[Path, Plain]]:
    state = net.state_dict()
    paths = {n: directory / f"w.{n}" for n in ("pyth", "safetensors", "pkl", "pth")}
    torch.save({"model_state": state}, paths["pyth"])
    save_file(state, paths["safetensors"])
    caffe2 = {KEYMAPS["caffe2"].to_theirs(k): v.numpy() for k, v in state.items()}
    with paths["pkl"].open("wb") as file:
        # Protocol 2 of Python 2 stores bytes unchanged; Python 3 does so from protocol 3 on.
        pickle.dump({"blobs": {k: v for k, v in caffe2.items() if k is not None}}, file, protocol=3)
    flat = {KEYMAPS["torchvision"].to_theirs(k): v for k, v in state.items()}
    torch.save({k: v.sum(2) if v.ndim == 5 else v for k, v in flat.items()}, paths["pth"])
    return {
        "pytorchvideo .pyth": (
            paths["pyth"],
            lambda net, path: net.load_state_dict(torch.load(path, weights_only=True)["model_state"]),
        ),
        "safetensors": (paths["safetensors"], lambda net, path: net.load_state_dict(load_file(path))),
        "Caffe2 .pkl": (paths["pkl"], _plain_pickle),
        "torchvision .pth, inflated": (paths["pth"], _plain_inflation),
    }


def _plain_pickle(net: I3D, path: Path) -> object:
    with path.open("rb") as file:
        blobs = pickle.load(file, encoding="latin1")["blobs"]
    state = {str(KEYMAPS["caffe2"].to_ours(k)): torch.from_numpy(v) for k, v in blobs.items()}
    return net.load_state_dict(state, strict=False)  # Caffe2 keeps no counts of batches


def _plain_inflation(net: I3D, path: Path) -> object:
    wanted = net.state_dict()
    state = {}
    for key, tensor in torch.load(path, weights_only=True).items():
        name = str(KEYMAPS["torchvision"].to_ours(key))
        if tensor.ndim == 4:
            frames = wanted[name].shape[2]
            tensor = tensor.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames
        state[name] = tensor
    return net.load_state_dict(state)


def _measure(net: I3D, path: Path, plain: Plain, rounds: int) -> dict[str, Any]:
    contenders = {
        "ours": timed(lambda number: load_into(net, path, layout_mismatch="allow")),
        "plain": timed(lambda number: plain(net, path)),
    }
    summary = summarize(side_by_side(contenders, rounds))
    return {**summary, "ratio": ratio_of_medians(summary, "ours", "plain"), "file_mb": path.stat().st_size / 1e6}


def _peaks(net: I3D, path: Path, plain: Plain) -> dict[str, float | None]:
    loads = {"ours": lambda fresh: load_into(fresh, path, layout_mismatch="allow"), "plain": lambda n: plain(n, path)}
    return {name: _in_a_fork(_peak, net.arguments, load, path.stat().st_size) for name, load in loads.items()}


def _in_a_fork(measure: Callable[..., float | None], *arguments: Any) -> float | None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(measure(*arguments)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def _peak(arguments: Mapping[str, Any], load: Callable[[I3D], object], size: int) -> float | None:
    """Highest growth of this process's memory in RAM, mapped files included, as a multiple of the file's size."""
    net = i3d(**arguments)  # the parent's would be copied on the first write to it
    gc.collect()
    before = resident_bytes() if reset_peak() else None
    load(net)
    peak = resident_bytes(peak=True)
    return None if before is None or peak is None else (peak - before) / size


def format_page(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [
        *head_lines(result),
        f"ResNet-50 I3D, {result['num_parameters'] / 1e6:.2f} M parameters; "
        f"targets: {SECONDS_TARGET:g} s, {MEMORY_TARGET:g} times the file in memory",
        "",
        f"{'file':28s}{'MB':>6s}{'load_into':>12s}{'plain':>10s}{'ratio':>8s}{'memory':>9s}{'plain':>8s}",
    ]
    for name, found in result["files"].items():
        memory = "".join(
            f"{'-' if found['memory'][who] is None else format(found['memory'][who], '.2f'):>{wide}s}"
            for who, wide in (("ours", 9), ("plain", 8))
        )
        seconds = [found[who]["median_ms"] / 1000 for who in ("ours", "plain")]
        lines.append(
            f"{name:28s}{found['file_mb']:6.0f}{seconds[0]:10.3f} s{seconds[1]:8.3f} s{found['ratio']:8.2f}{memory}"
        )
    return "\n".join(lines) + "\n"
