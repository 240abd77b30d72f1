"""`video-gn bench train`: a training step's time and memory for each norm, side by side in one run.

Each contender does one step in a round; ratios are of medians. Memory is measured before that, each contender in its
own process. `pytorchvideo` is its i3d_r50 with Batch Norm: contiguous as it comes, and in channels_last_3d.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

import torch
from torch import nn

from video_gn.bench._train_step import (
    CPU_PRECISIONS,
    FORMATS,
    PRECISIONS,
    PYTORCHVIDEO,
    PYTORCHVIDEO_LAYOUT,
    Contender,
    TrainSetup,
    build,
    make_step,
    peak_bytes,
    set_checkpointing,
)
from video_gn.bench.measuring import (
    describe_machine,
    head_lines,
    ratio_of_medians,
    side_by_side,
    summarize,
    timed,
    verdict,
)
from video_gn.errors import ConfigError
from video_gn.models import warn_of_slow_bfloat16
from video_gn.models.norms import NORMS, norm_kind
from video_gn.models.resnet3d import min_clip

log = logging.getLogger(__name__)

# Targets for clips of 32 x 224 x 224, two on a CPU: (what, contender, compared to, figure, at most).
_BEST = "channels_last_3d"
TARGETS = (
    ("group / batch, float32", f"group {_BEST} float32", "to_batch", "time", 1.05),
    ("group / batch, bfloat16", f"group {_BEST} bfloat16", "to_batch", "time", 1.05),
    ("group float32 / pytorchvideo unchanged", f"group {_BEST} float32", "to_pytorchvideo", "time", 0.75),
    ("group bfloat16 / pytorchvideo unchanged", f"group {_BEST} bfloat16", "to_pytorchvideo", "time", 0.5),
    ("checkpointing, memory", f"group {_BEST} float32 checkpointed", "to_plain", "memory", 0.55),
    ("checkpointing, time", f"group {_BEST} float32 checkpointed", "to_plain", "time", 1.35),
)
# Eight on a CUDA device.
CUDA_TARGETS = (
    ("group / batch, tf32", f"group {_BEST} tf32", "to_batch", "time", 1.0),
    ("group / batch, bfloat16", f"group {_BEST} bfloat16", "to_batch", "time", 1.0),
    ("group / batch, bfloat16, memory", f"group {_BEST} bfloat16", "to_batch", "memory", 1.0),
    ("group bfloat16 / pytorchvideo unchanged", f"group {_BEST} bfloat16", "to_pytorchvideo", "time", 1 / 3),
)


def bench_train(
    setup: TrainSetup,
    *,
    norms: Sequence[str] = (),
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    compiled: bool = False,
    memory: bool = True,
    rounds: int,
) -> dict[str, Any]:
    """Measure training steps; the figures are for `format_page` and json.

    Norms, formats and precisions are keys of `NORMS`, `FORMATS` and `PRECISIONS`; if empty, all that the device has.
    `compiled` measures compiled nets too, in channels_last_3d; compiling takes a minute or more for each.

    Raises:
        ConfigError: for an unknown norm, format, precision, layout or device, or a clip that is
            too small for the layout.
    """
    norms, formats = tuple(norms or NORMS), tuple(formats or FORMATS)
    precisions = tuple(precisions or (PRECISIONS if setup.on_cuda else CPU_PRECISIONS))
    _check(setup, norms, formats, precisions)
    if "bfloat16" in precisions:
        warn_of_slow_bfloat16(torch.device(setup.device).type, advice="Choose --precisions float32.")
    contenders, notes = list_contenders(setup, norms, formats, precisions, compiled=compiled)
    peaks = {}
    for contender in contenders:
        if memory and not contender.compiled:
            log.info("memory: %s", contender.name)
            peaks[contender.name] = peak_bytes(contender, setup)
    seconds, compile_seconds, refused = _measure(contenders, setup, rounds)
    figures = ratios(contenders, summarize(seconds), peaks)
    for name, value in compile_seconds.items():
        figures[name]["compile_seconds"] = value
    return {
        "machine": describe_machine(setup.device),
        "setup": asdict(setup),
        "rounds": rounds,
        "contenders": figures,
        "targets": check_targets(figures, CUDA_TARGETS if setup.on_cuda else TARGETS),
        "targets_apply": (setup.num_clips, setup.frames, setup.size, setup.width)
        == (8 if setup.on_cuda else 2, 32, 224, 64),
        "notes": notes + [f"{name} was not measured: {reason}" for name, reason in refused.items()],
    }


def _check(setup: TrainSetup, norms: Sequence[str], formats: Sequence[str], precisions: Sequence[str]) -> None:
    known = PRECISIONS if setup.on_cuda else CPU_PRECISIONS
    for name, values, table in (("formats", formats, FORMATS), ("precisions", precisions, known)):
        if not set(values) <= set(table):
            raise ConfigError(f"{name} must be among {sorted(table)}, got {list(values)!r}. Choose some of these.")
    try:
        for norm in norms:
            norm_kind(norm)
        frames, size = min_clip(setup.layout)
        torch.empty(0, device=setup.device)
    except (ValueError, RuntimeError, AssertionError) as error:  # the last two come from the device
        raise ConfigError(str(error).splitlines()[0]) from None
    if setup.frames < frames or setup.size < size:
        raise ConfigError(
            f"frames and size must be at least {frames} and {size} for layout {setup.layout!r}, "
            f"got {setup.frames!r} and {setup.size!r}. Take larger clips or another layout."
        )


def list_contenders(
    setup: TrainSetup, norms: Sequence[str], formats: Sequence[str], precisions: Sequence[str], *, compiled: bool
) -> tuple[list[Contender], list[str]]:
    """The contenders, and notes on those left out."""
    notes = []
    contenders = [Contender(n, f, p) for n in norms for f in formats for p in precisions]
    if compiled:
        contenders += [Contender(n, _BEST, p, compiled=True) for n in norms for p in precisions]
    if _BEST in formats:
        norm = "group" if "group" in norms else norms[0]
        contenders += [Contender(norm, _BEST, p, checkpointed=True) for p in precisions]
    if setup.layout == PYTORCHVIDEO_LAYOUT:
        # As it comes, and in the other formats that are asked for.
        contenders += [
            Contender(PYTORCHVIDEO, f, p) for f in dict.fromkeys(("contiguous", *formats)) for p in precisions
        ]
    else:
        notes.append(f"pytorchvideo was not measured: its net has the layout {PYTORCHVIDEO_LAYOUT!r} only")
    return contenders, notes


def _measure(
    contenders: Sequence[Contender], setup: TrainSetup, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, str]]:
    """Seconds of each round, seconds of compiling, and reasons of those not measured, by name."""
    nets: dict[tuple[str, str, bool], nn.Module] = {}
    compile_seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    steps: dict[str, Callable[[int], float]] = {}
    for contender in contenders:
        # Precisions share a net: 28 million weights for each would add up.
        key = (contender.net, contender.memory_format, contender.compiled)
        if key not in nets:
            nets[key] = build(contender, setup)
            if contender.compiled:
                nets[key].compile()
        step = _in_turn(nets[key], contender, setup)
        if contender.compiled:
            log.info("compiling: %s", contender.name)
            try:
                compile_seconds[contender.name] = step(0)
            except RuntimeError as error:  # such as a missing C++ compiler
                refused[contender.name] = str(error).splitlines()[0]
                continue
        steps[contender.name] = step
    log.info("time: %d contenders, %d rounds and a warm-up", len(steps), rounds)
    return side_by_side(steps, rounds), compile_seconds, refused


def _in_turn(net: nn.Module, contender: Contender, setup: TrainSetup) -> Callable[[int], float]:
    step = make_step(net, contender, setup)

    def turn(number: int) -> None:
        set_checkpointing(net, contender)
        step()

    return timed(turn, setup.device)


def ratios(
    contenders: Sequence[Contender], summary: Mapping[str, Mapping[str, float]], peaks: Mapping[str, int | None]
) -> dict[str, dict[str, Any]]:
    """Each contender's figures, and its time and memory divided by those that it is compared with.

    `summary` and `peaks` have the figures of those measured by their names.

    Returns:
        name -> what the contender is, its figures, `peak_mb`, and `to_batch` (of the same format and precision,
        compiled if it is), `to_pytorchvideo` (unchanged: TF32, torch's choice on CUDA, if that is measured, or float32)
        and `to_plain` (without checkpointing), each {"time", "memory"}; None for what was not measured.
    """
    figures: dict[str, dict[str, Any]] = {}
    unchanged = Contender(PYTORCHVIDEO, "contiguous", "tf32")
    if unchanged not in contenders:
        unchanged = Contender(PYTORCHVIDEO, "contiguous", "float32")
    for contender in contenders:
        name = contender.name
        if name not in summary:
            continue
        peak = peaks.get(name)
        others = {
            "to_batch": Contender("batch", contender.memory_format, contender.precision, contender.compiled),
            "to_pytorchvideo": unchanged,
        }
        if contender.checkpointed:
            others["to_plain"] = Contender(contender.net, contender.memory_format, contender.precision)
        figures[name] = {
            **asdict(contender),
            **summary[name],
            "peak_mb": None if peak is None else peak / 1e6,
            **{key: _ratio(name, other.name, summary, peaks) for key, other in others.items()},
        }
    return figures


def _ratio(
    above: str, below: str, summary: Mapping[str, Mapping[str, float]], peaks: Mapping[str, int | None]
) -> dict[str, float | None]:
    over, under = peaks.get(above), peaks.get(below)
    return {
        "time": ratio_of_medians(summary, above, below) if below in summary else None,
        "memory": over / under if over and under else None,
    }


def check_targets(
    figures: Mapping[str, Mapping[str, Any]], targets: Sequence[tuple[str, str, str, str, float]] = TARGETS
) -> list[dict[str, Any]]:
    """The targets, the values, and whether they meet the targets; None for what was not measured."""
    found = []
    for what, name, to, figure, at_most in targets:
        value = figures[name][to][figure] if name in figures else None
        met = None if value is None else value <= at_most
        found.append({"what": what, "value": value, "at_most": at_most, "met": met})
    return found


def format_page(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    setup = result["setup"]
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("net", "format", "precision", "", "step ms", "lowest-highest", "MB"):
        table.add_column(heading, justify="right" if heading in ("step ms", "lowest-highest", "MB") else "left")
    for heading in ("time / batch", "/ ptv", "MB / batch", "/ ptv"):
        table.add_column(heading, justify="right")
    for found in result["contenders"].values():
        words = [word for word in ("compiled", "checkpointed") if found[word]]
        if "compile_seconds" in found:
            words.append(f"in {found['compile_seconds']:.0f} s")
        table.add_row(
            found["net"],
            found["memory_format"],
            found["precision"],
            " ".join(words),
            f"{found['median_ms']:.1f}",
            f"{found['min_ms']:.1f}-{found['max_ms']:.1f}",
            _number(found["peak_mb"], ".0f"),
            *(_number(found[to][what], ".2f") for what in ("time", "memory") for to in ("to_batch", "to_pytorchvideo")),
        )
    page = StringIO()
    console = Console(file=page, width=140)
    console.print(
        *head_lines(result),
        f"A training step on {setup['num_clips']} clips of {setup['frames']}x{setup['size']}x{setup['size']}, "
        f"ResNet-50 I3D of width {setup['width']}, layout {setup['layout']}, on {result['machine']['device']}",
        "ptv: pytorchvideo's i3d_r50 unchanged, contiguous, in float32; on CUDA in TF32, which is torch's choice there",
        table,
        "Targets, for clips of 32x224x224 and width 64, two on a CPU and eight on a CUDA device"
        + (":" if result["targets_apply"] else "; they do not hold for this run's setup:"),
        sep="\n",
        highlight=False,
    )
    for target in result["targets"]:
        value = target["value"]
        text = "not measured" if value is None else f"{value:.2f}, {verdict(value, at_most=target['at_most'])}"
        console.print(f"  {target['what']}: {text}", highlight=False)
    for note in result["notes"]:
        console.print(note, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
