"""What a plan is made of, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.bench.measuring import describe_machine

if TYPE_CHECKING:
    from video_gn.data.datamodule import VideoDataModule
    from video_gn.training.optimizer import OptimizerConfig


@dataclass
class Request:
    """What a plan is made of.

    Args:
        net: Arguments of `i3d`.
        optimizer: Its kind and settings.
        is_checkpointed: Whether activations are computed again in the backward pass.
        has_weights: Whether it starts from weights.
        datamodule: Data module whose lists are read.
        trainer: Settings of Lightning's trainer.
        run_dir: Directory of the run.
        keep_steps: Older checkpoints that are kept.
        averages: Whether weights are averaged.
        num_processes: Processes of all nodes.
        gpu_memory_gb: Memory of each GPU, in 10^9 bytes; None for a training on this machine's CPU.
        clips_per_second: Training clips a second that a process computes; None measures them here.
        num_cores: Cores of all nodes; None for as many as this machine has, on each node.
        sample: Videos that are read to measure.
    """

    net: Mapping[str, Any]
    optimizer: OptimizerConfig
    is_checkpointed: bool
    has_weights: bool
    datamodule: VideoDataModule
    trainer: Mapping[str, Any]
    run_dir: Path
    keep_steps: int
    averages: bool
    num_processes: int
    gpu_memory_gb: float | None
    clips_per_second: float | None
    num_cores: int | None
    sample: int


@dataclass(frozen=True)
class Figure:
    """A figure of a plan.

    Args:
        value: Number, or numbers by name.
        basis: "counted", "measured", "assumed", or "follows" from others.
        note: How, or from what.
    """

    value: Any
    basis: str
    note: str = ""


@dataclass
class Plan:
    """What a training will need.

    Attributes:
        title: What is trained, in a line.
        figures: By name, whose end is the unit.
        problems: Why it cannot be trained so, and what would fit, a line each.
        notes: What else to know, a line each.
        alternatives: Changes that matter, with their figures; the first is the config as it is.
        machine: Where it was measured.
    """

    title: str
    figures: dict[str, Figure] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    alternatives: list[dict[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=describe_machine)

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
