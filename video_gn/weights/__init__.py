"""Weights of every zoo: `load_into` puts them into a network, strictly, and says what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from video_gn.weights.about import Preprocessing
    from video_gn.weights.keymaps import FORMATS
    from video_gn.weights.load import load_into
    from video_gn.weights.report import LoadReport

_HOMES = {"FORMATS": "keymaps", "LoadReport": "report", "Preprocessing": "about", "load_into": "load"}

__all__ = ["FORMATS", "LoadReport", "Preprocessing", "WeightsOptions", "load_into"]


@dataclass(frozen=True)
class WeightsOptions:
    """How weights are read, and what may differ.

    Args:
        format: Format of the file; "auto" recognizes it from the content.
        norm_mismatch: For weights of another kind of norm: "error", or "reinit" to keep the network's own norms.
        layout_mismatch: For weights of another stem and pooling: "error", or "allow".
        ignore: Patterns, as of file names (`aux_head.*`), of names in the file to leave out.
    """

    format: str = "auto"
    norm_mismatch: Literal["error", "reinit"] = "error"
    layout_mismatch: Literal["error", "allow"] = "error"
    ignore: list[str] = field(default_factory=list)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
