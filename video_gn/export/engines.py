"""Runs an exported network by ONNX Runtime or OpenVINO, on the CPU, with as many threads as torch has.

Shape letters: N clips, T frames, C channels or features, H, W, Y classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_gn.checks import did_you_mean
from video_gn.errors import CheckpointError, ConfigError
from video_gn.export.reading import INPUT, OUTPUTS, needed, read_onnx_about
from video_gn.models import build_network
from video_gn.weights.about import network_of
from video_gn.weights.build import check_layout

# uint8 (N, T, H, W, 3) -> scores (N, Y) and features (N, C), float32.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]
ONNX = ".onnx"
TORCH = "torch"
HALF = "openvino-bf16"


def _onnxruntime(path: Path) -> Run:
    runtime = needed("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda frames: session.run(OUTPUTS, {INPUT: frames})


def _openvino(path: Path, precision: str = "f32") -> Run:
    core = needed("openvino", extra="openvino").Core()
    if precision == "bf16" and not _has_bfloat16(core):
        raise ConfigError(
            f"engine {HALF} must have a CPU with instructions for bfloat16, got one without. Take openvino."
        )
    # Left alone it takes bfloat16 on CPUs that have it.
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(path, "CPU", settings)

    def run(frames: np.ndarray) -> Sequence[np.ndarray]:
        results = compiled({INPUT: frames})
        return [results[name] for name in OUTPUTS]

    return run


def _has_bfloat16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# Each takes a file that `read_onnx_about` has checked.
_OPENED: dict[str, Callable[[Path], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    HALF: partial(_openvino, precision="bf16"),
}
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
ENGINES = (TORCH, *_OPENED)


def installed_engines() -> list[str]:
    """The engines beside torch that are installed and compute in float32."""
    return [name for name in _EXTRAS if find_spec(name)]


def half_engines() -> list[str]:
    """The engines that are installed and compute in bfloat16 on this CPU."""
    if "openvino" not in installed_engines():
        return []
    return [HALF] if _has_bfloat16(needed("openvino", extra="openvino").Core()) else []


class EngineNet:
    """An exported network, which takes pixels as they are.

    Args:
        path: ONNX file.
        engine: "onnxruntime", "openvino" or "openvino-bf16".
        arguments: Those of the network in the file, as `VideoNet.arguments`.

    Attributes:
        num_features: Length of what `embed` gives.

    Raises:
        CheckpointError: if the engine cannot run the file.
        ConfigError: if the engine is not installed.
    """

    def __init__(self, path: Path, engine: str, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self._path, self._engine = path, engine
        try:
            self._run = _OPENED[engine](path)
            with torch.device("meta"):
                self.num_features = build_network(arguments).num_features
        except ConfigError:
            raise
        except Exception as error:
            raise self._refusal(error) from error

    @property
    def num_classes(self) -> int:
        """Y."""
        return int(self.arguments["num_classes"])

    def scores_and_embedding(self, frames_NTCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Softmax scores (N, Y) and features (N, C), float32, of uint8 frames in any memory order.

        Raises:
            CheckpointError: if the engine cannot run the file.
        """
        frames_NTHWC = frames_NTCHW.permute(0, 1, 3, 4, 2).contiguous().numpy()
        try:
            scores_NY, features_NC = (torch.from_numpy(np.array(found)) for found in self._run(frames_NTHWC))
            for found, what in ((scores_NY, self.num_classes), (features_NC, self.num_features)):
                if found.shape != (len(frames_NTHWC), what):
                    raise ValueError(f"an output of shape {tuple(found.shape)}, not {(len(frames_NTHWC), what)}")
        except Exception as error:
            raise self._refusal(error) from error
        return scores_NY, features_NC

    def forward(self, frames_NTCHW: torch.Tensor) -> torch.Tensor:
        """Softmax scores (N, Y); arguments and errors as above."""
        return self.scores_and_embedding(frames_NTCHW)[0]

    def embed(self, frames_NTCHW: torch.Tensor) -> torch.Tensor:
        """Features (N, C); arguments and errors as above."""
        return self.scores_and_embedding(frames_NTCHW)[1]

    def _refusal(self, error: Exception) -> CheckpointError:
        reason = " ".join(str(error).split())[:200]
        return CheckpointError(
            f"{self._path}: {self._engine} cannot run it ({reason}). Take another engine, or export it anew."
        )


def engine_of(path: str | os.PathLike[str], engine: str | None) -> str:
    """The engine for a file: the one asked for, or ONNX Runtime for .onnx and torch for all others.

    Raises:
        ConfigError: for an unknown engine, or one that cannot read the file.
    """
    if engine is not None and engine not in ENGINES:
        advice = did_you_mean(engine, ENGINES) or "Choose one of these."
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}. {advice}")
    if Path(path).suffix != ONNX:
        if engine not in (None, TORCH):
            raise ConfigError(
                f"engine {engine} must have a {ONNX} file, got {path}. Write one: video-gn export {path} model{ONNX}"
            )
        return TORCH
    if engine == TORCH:
        others = ", ".join(_OPENED)
        raise ConfigError(
            f"engine must be one of {others} for {path}, got torch. Or give the checkpoint that it is made of."
        )
    return engine or "onnxruntime"


def load_engine(
    path: Path, engine: str, *, device: str = "auto", layout: str | None = None, labels: Sequence[str] = ()
) -> tuple[EngineNet, dict[str, Any]]:
    """Open an exported network, checked before an engine sees it.

    Args:
        path: ONNX file that `export` has written.
        engine: "onnxruntime", "openvino" or "openvino-bf16".
        device: "auto" or "cpu".
        layout: The file's own or None.
        labels: Class names by number instead of its own.

    Returns:
        The network, and what its checkpoint says of it as `weights.build.load_net` gives it.

    Raises:
        CheckpointError: for a file that is missing, damaged or another's, or that the engine cannot run.
        ConfigError: if the engine is not installed, or for another device.
    """
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device must be cpu with engine {engine}, got {device!r}. Leave it out.")
    package = engine.removesuffix("-bf16")
    needed(package, extra=_EXTRAS[package])
    about = read_onnx_about(path, labels=labels, extra=_EXTRAS[package])
    net = EngineNet(path, engine, dict(about["net"]))
    check_layout(str(path), network_of(net.arguments), net.arguments.get("layout"), layout)
    return net, about
