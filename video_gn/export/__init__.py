"""Networks outside torch: written as ONNX or by torch.export, read and run by other engines."""

from __future__ import annotations

from video_gn.export.engines import ENGINES, EngineNet, engine_of, half_engines, installed_engines, load_engine
from video_gn.export.int8 import Quantized, check_list, load_nncf, quantize, write_int8
from video_gn.export.writing import SUFFIXES, Parity, export

__all__ = [
    "ENGINES",
    "SUFFIXES",
    "EngineNet",
    "Parity",
    "Quantized",
    "check_list",
    "engine_of",
    "export",
    "half_engines",
    "installed_engines",
    "load_engine",
    "load_nncf",
    "quantize",
    "write_int8",
]
