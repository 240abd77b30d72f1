"""`video-gn bench train`: a training step's time and memory for each norm, side by side in one run.

All contenders do one step a round, in a changing order, so that a busy machine slows all of them; the first round
warms up and does not count. Ratios are of medians. Memory is measured before that, each contender in a process of
its own. `pytorchvideo` is its i3d_r50 with batch norm, as it comes: contiguous.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

import torch
from torch import nn

from video_gn.bench._train_step import (
    CHECKPOINTING,
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
from video_gn.bench.measuring import describe_machine, ratio_of_medians, side_by_side, summarize
from video_gn.errors import ConfigError
from video_gn.files import write_json
from video_gn.models.norms import NORMS, norm_kind
from video_gn.models.resnet3d import I3D, min_clip

log = logging.getLogger(__name__)

# They hold for two clips of 32 x 224 x 224 on a CPU: (what, contender, to what, figure, at most).
_BEST = "channels_last_3d"
TARGETS = (
    ("group / batch, float32", f"group {_BEST} float32", "to_batch", "time", 1.1),
    ("group / batch, bfloat16", f"group {_BEST} bfloat16", "to_batch", "time", 1.2),
    ("group float32 / pytorchvideo as it comes", f"group {_BEST} float32", "to_pytorchvideo", "time", 0.75),
    ("group bfloat16 / pytorchvideo as it comes", f"group {_BEST} bfloat16", "to_pytorchvideo", "time", 0.5),
    ("checkpointing, memory", f"group {_BEST} float32 checkpointed", "to_plain", "memory", 0.55),
    ("checkpointing, time", f"group {_BEST} float32 checkpointed", "to_plain", "time", 1.35),
)


def bench_train(
    setup: TrainSetup | None = None,
    *,
    norms: Sequence[str] = (),
    formats: Sequence[str] = tuple(FORMATS),
    precisions: Sequence[str] = tuple(PRECISIONS),
    compiled: bool = False,
    memory: bool = True,
    rounds: int = 5,
    output: str | None = None,
) -> int:
    """Measure training steps, print a table of medians and ratios, and write them as json where asked.

    Args:
        setup: clips, net and device.
        norms: kinds of `NORMS`; none given, all of them.
        formats: keys of `FORMATS`.
        precisions: keys of `PRECISIONS`.
        compiled: also compiled nets, in channels_last_3d; compiling takes a minute or more for each.
        memory: measure that as well.
        rounds: that count; one more comes before them and does not.
        output: json file to write.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: for fewer than 1 round, an unknown norm, format, precision, layout or device, or a clip that is
            too small for the layout.
    """
    setup = setup or TrainSetup()
    norms = tuple(norms) or tuple(NORMS)
    _check(setup, norms, formats, precisions, rounds)
    contenders, notes = list_contenders(setup, norms, formats, precisions, compiled=compiled)
    peaks = {c.name: _peak(c, setup) for c in contenders if memory and not c.compiled}
    seconds, compile_seconds, refused = _measure(contenders, setup, rounds)
    figures = ratios(contenders, summarize(seconds), peaks)
    for name, value in compile_seconds.items():
        figures[name]["compile_seconds"] = value
    result: dict[str, Any] = {
        "machine": {**describe_machine(), "device": _device_name(setup)},
        "setup": {name: getattr(setup, name) for name in TrainSetup.__slots__},
        "rounds": rounds,
        "contenders": figures,
        "targets": check_targets(figures),
        "targets_apply": _targets_apply(setup),
        "notes": notes + [f"{name} was not measured: {reason}" for name, reason in refused.items()],
    }
    sys.stdout.write(format_page(result))
    if output is not None:
        write_json(output, result)
    return 0


def _check(
    setup: TrainSetup, norms: Sequence[str], formats: Sequence[str], precisions: Sequence[str], rounds: int
) -> None:
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds!r}. The first round is not counted among them.")
    for name, values, table in (("formats", formats, FORMATS), ("precisions", precisions, PRECISIONS)):
        if not values or not set(values) <= set(table):
            raise ConfigError(f"{name} must be among {sorted(table)}, got {list(values)!r}. Choose of these.")
    try:
        for norm in norms:
            norm_kind(norm)
        frames, size = min_clip(setup.layout)
        torch.empty(0, device=setup.device)
    except (ValueError, RuntimeError, AssertionError) as error:  # the last two: of the device
        raise ConfigError(str(error).splitlines()[0]) from None
    if setup.frames < frames or setup.size < size:
        raise ConfigError(
            f"frames and size must be at least {frames} and {size} for layout {setup.layout!r}, "
            f"got {setup.frames!r} and {setup.size!r}. Take larger clips or another layout."
        )


def list_contenders(
    setup: TrainSetup, norms: Sequence[str], formats: Sequence[str], precisions: Sequence[str], *, compiled: bool
) -> tuple[list[Contender], list[str]]:
    """Who takes part, and notes on who does not."""
    notes = []
    contenders = [Contender(n, f, p) for n in norms for f in formats for p in precisions]
    if compiled:
        contenders += [Contender(n, _BEST, p, compiled=True) for n in norms for p in precisions]
    if not hasattr(I3D, CHECKPOINTING):
        notes.append("activation checkpointing was not measured: the net has none")
    elif _BEST in formats:
        norm = "group" if "group" in norms else norms[0]
        contenders += [Contender(norm, _BEST, p, checkpointed=True) for p in precisions]
    if setup.layout == PYTORCHVIDEO_LAYOUT:
        contenders += [Contender(PYTORCHVIDEO, "contiguous", p) for p in precisions]
    else:
        notes.append(f"pytorchvideo was not measured: its net is of the layout {PYTORCHVIDEO_LAYOUT!r} alone")
    return contenders, notes


def _peak(contender: Contender, setup: TrainSetup) -> int | None:
    log.info("memory: %s", contender.name)
    return peak_bytes(contender, setup)


def _measure(
    contenders: Sequence[Contender], setup: TrainSetup, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, str]]:
    """Seconds of each round, seconds of compiling, and why others were not measured, by name."""
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
            except RuntimeError as error:  # no C++ compiler, for one
                refused[contender.name] = str(error).splitlines()[0]
                continue
        steps[contender.name] = step
    log.info("time: %d contenders, %d rounds and one before them", len(steps), rounds)
    return side_by_side(steps, rounds), compile_seconds, refused


def _in_turn(net: nn.Module, contender: Contender, setup: TrainSetup) -> Callable[[int], float]:
    step = make_step(net, contender, setup)

    def turn(number: int) -> float:
        set_checkpointing(net, contender)
        return step()

    return turn


def ratios(
    contenders: Sequence[Contender], summary: Mapping[str, Mapping[str, float]], peaks: Mapping[str, int | None]
) -> dict[str, dict[str, Any]]:
    """Each contender's figures, and its time and memory divided by those it is to be compared with.

    Args:
        contenders: those that may have figures.
        summary: name -> "median_ms", "min_ms", "max_ms"; a name that is not there was not measured.
        peaks: name -> bytes; None and a missing name alike are unknown.

    Returns:
        name -> what the contender is, its figures, `peak_mb`, and `to_batch` (of the same format and precision,
        compiled where it is), `to_pytorchvideo` (as it comes: float32) and `to_plain` (without checkpointing), each
        {"time", "memory"}; what was not measured is None.
    """
    figures: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        name = contender.name
        if name not in summary:
            continue
        peak = peaks.get(name)
        others = {
            "to_batch": Contender("batch", contender.memory_format, contender.precision, contender.compiled),
            "to_pytorchvideo": Contender(PYTORCHVIDEO, "contiguous", "float32"),
        }
        if contender.checkpointed:
            others["to_plain"] = Contender(contender.net, contender.memory_format, contender.precision)
        figures[name] = {
            **{field: getattr(contender, field) for field in Contender.__slots__},
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


def check_targets(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The targets, what was found, and whether that meets them; None for what was not measured."""
    found = []
    for what, name, to, figure, at_most in TARGETS:
        value = figures[name][to][figure] if name in figures else None
        met = None if value is None else value <= at_most
        found.append({"what": what, "value": value, "at_most": at_most, "met": met})
    return found


def _targets_apply(setup: TrainSetup) -> bool:
    return (setup.num_clips, setup.frames, setup.size, setup.width) == (2, 32, 224, 64) and not setup.on_cuda


def _device_name(setup: TrainSetup) -> str:
    return torch.cuda.get_device_name(setup.device) if setup.on_cuda else setup.device


def format_page(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    machine, setup = result["machine"], result["setup"]
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
        f"{machine['processor']}, {machine['num_threads']} of {machine['num_cores']} cores, "
        f"load {machine['load_average']:.1f}, torch {machine['torch']}, device {machine['device']}",
        f"A training step on {setup['num_clips']} clips of {setup['frames']}x{setup['size']}x{setup['size']}, "
        f"ResNet-50 I3D of width {setup['width']}, layout {setup['layout']}; medians over {result['rounds']} round(s) "
        "side by side.",
        "ptv: pytorchvideo's i3d_r50 as it comes, float32.",
        table,
        "Targets, for two clips of 32x224x224 and width 64 on a CPU"
        + (":" if result["targets_apply"] else "; they do not hold for this run's setup:"),
        sep="\n",
        highlight=False,
    )
    for target in result["targets"]:
        verdict = {None: "not measured", True: "met", False: "missed"}[target["met"]]
        value = _number(target["value"], ".2f")
        console.print(f"  {target['what']}: {value}, at most {target['at_most']:g}: {verdict}", highlight=False)
    for note in result["notes"]:
        console.print(note, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
