"""What a plan is made of, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.bench.measuring import describe_machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from video_gn.data.datamodule import VideoDataModule
    from video_gn.training.optimizer import OptimizerConfig


@dataclass
class Request:
    """What a plan is made of."""

    net: Mapping[str, Any]  # `VideoNet.arguments`, or `OwnNet.arguments`
    optimizer: OptimizerConfig  # its kind and settings
    is_checkpointed: bool  # whether activations are computed again in the backward pass
    has_weights: bool  # whether it starts from weights
    datamodule: VideoDataModule  # data module whose lists are read
    trainer: Mapping[str, Any]  # settings of Lightning's trainer
    run_dir: Path  # directory of the run
    keep_steps: int  # older checkpoints that are kept
    averages: bool  # whether weights are averaged
    num_processes: int  # processes of all nodes
    gpu_memory_gb: float | None  # memory of each GPU, in 10^9 bytes; None for a training on this machine's CPU
    clips_per_second: float | None  # training clips a second that a process computes; None measures them here
    num_cores: int | None  # cores of all nodes; None for as many as this machine has, on each node
    sample: int  # videos that are read to measure
    own: Callable[[], nn.Module] | None = None  # builds somebody's own net


@dataclass(frozen=True)
class Figure:
    """A figure of a plan."""

    value: Any  # number, or numbers by name
    basis: str  # "counted", "measured", "assumed", or "follows" from others
    note: str = ""  # how, or from what


@dataclass
class Plan:
    """What a training will need."""

    title: str  # what is trained, in a line
    figures: dict[str, Figure] = field(default_factory=dict)  # by name, whose end is the unit
    problems: list[str] = field(default_factory=list)  # why it cannot be trained so, and what would fit, a line each
    notes: list[str] = field(default_factory=list)  # what else to know, a line each
    # changes that matter, with their figures; the first is the config as it is
    alternatives: list[dict[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=describe_machine)  # where it was measured

    def add(self, name: str, value: Any, basis: str, note: str = "") -> Any:
        """Add a figure; returns its value."""
        self.figures[name] = Figure(value, basis, note)
        return value

    def __getitem__(self, name: str) -> Any:
        return self.figures[name].value

    def as_json(self) -> dict[str, Any]:
        """All of it in plain containers."""
        figures = {name: {k: v for k, v in vars(f).items() if v != ""} for name, f in self.figures.items()}
        return {**vars(self), "fits": not self.problems, "figures": figures}
