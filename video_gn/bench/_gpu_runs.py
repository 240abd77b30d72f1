"""Stages of the GPU check that start other programs: the tests, and trainings by `video-gn fit`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the check's networks and clips are."""

    device: str
    small: bool

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.startswith("cuda")

    def pick(self, full: int, small: int) -> int:
        """A number for full size, or for a trial on a CPU."""
        return small if self.small else full


@dataclass(slots=True)
class Outcome:
    """What a stage has found."""

    figures: dict[str, Any] = field(default_factory=dict)  # plain containers, for the json
    lines: list[str] = field(default_factory=list)  # markdown, for the page
    failures: list[str] = field(default_factory=list)  # what is wrong, a line each; empty if the stage has passed
    skipped: str = ""  # why nothing was checked; "" if it was


# ---- tests -----------------------------------------------------------------------------------------


def run_tests(sizes: Sizes, work: Path) -> Outcome:
    """Run the tests marked `needs_cuda`; only their files, so that nothing is needed that others import."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.needs_cuda" in path.read_text()]
    if not files:
        return Outcome(skipped="there are no tests beside this package")
    if not sizes.on_cuda:
        return Outcome(skipped=f"no CUDA device: the tests of {len(files)} files that need one were left out")
    words = [sys.executable, "-m", "pytest", "-m", "needs_cuda", "-q", "-rfEs", "-p", "no:cacheprovider"]
    words += [str(path) for path in files]
    environment = {**os.environ, "FAIL_WITHOUT_CUDA": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sys.stderr.write(done.stdout)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout[-400:])}
    skipped, passed = counts.get("skipped", 0), counts.get("passed", 0)
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failures and (done.returncode or not passed):
        failures = [f"pytest ended with exit status {done.returncode} and {passed} passed tests"]
    reasons = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    return Outcome(counts, [f"{passed} passed, {skipped} skipped.", *(f"- {line}" for line in reasons)], failures)


# ---- trainings -------------------------------------------------------------------------------------

# Kinds of float32 arithmetic, by variables of the libraries. A CPU's other instructions add up in another order, as a
# GPU does: they stand in for it in a trial on a CPU.
_EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}
_OTHER_CPU = {"ONEDNN_MAX_CPU_ISA": "SSE41"}
# Of each step's loss, relative. Sums in another order (AVX-512, AVX2, SSE4.1, two threads) differed by 9e-7 at most in
# 16 steps; cuDNN's fast convolutions (Winograd, FFT) round more. Gradients 1% too large differed by 2e-4 after
# one step and by 3e-3 at most.
TOLERANCE = 1e-4
# bfloat16 rounds to 8 bits: 0.4% of each value.
_NARROW_TOLERANCE = 0.05


def check_training(sizes: Sizes, work: Path) -> Outcome:
    """Train a few steps on the device and on the CPU with the same seed; the losses must differ by rounding alone."""
    videos = _make_videos(work, sizes)
    words = [
        "--trainer.max_epochs=2",
        "--trainer.limit_val_batches=0",
        "--model.net.dropout=0",  # its numbers are drawn on the device
    ]
    runs: dict[str, tuple[str, dict[str, str], list[str]]] = {
        "cpu": ("cpu", {}, []),
        "device": (sizes.device, _EXACT if sizes.on_cuda else _OTHER_CPU, []),
    }
    if sizes.on_cuda:
        runs["tf32"] = (sizes.device, {}, [])
        runs["bf16-mixed"] = (sizes.device, {}, ["--trainer.precision=bf16-mixed"])
    trainings = {
        name: _start(work / name, videos, sizes, [*words, *more], device=device, environment=environment)
        for name, (device, environment, more) in runs.items()
    }
    failures = [text for name, training in trainings.items() if (text := _finish(training, work / name))]
    if failures:
        return Outcome(failures=failures)
    losses = {name: [row["train/loss"] for row in _rows(work / name)] for name in runs}
    differences = {
        name: max(abs(a - b) / abs(b) for a, b in zip(losses[name], losses["cpu"], strict=True))
        for name in runs
        if name != "cpu"
    }
    for name, value in differences.items():
        limit = TOLERANCE if name == "device" else _NARROW_TOLERANCE
        if not value <= limit:
            failures.append(f"{name}: the losses differ by {value:.1e} from the CPU's, more than {limit:.0e}")
    steps = len(losses["cpu"])
    lines = [
        f"{steps} steps of a small Group Norm I3D, relative difference of each step's loss from the CPU's in float32 "
        f"(at most {TOLERANCE:.0e} in float32, {_NARROW_TOLERANCE:.0e} in TF32 and bfloat16):",
        "",
        "| training | first loss | last loss | largest difference |",
        "|---|---|---|---|",
        *(
            f"| {name} | {values[0]:.5f} | {values[-1]:.5f} | {differences.get(name, 0.0):.1e} |"
            for name, values in losses.items()
        ),
    ]
    return Outcome({"losses": losses, "differences": differences}, lines, failures)


def check_resume(sizes: Sizes, work: Path) -> Outcome:
    """Resume a training from inside an epoch; it must end like the one that never stopped, to the bit.

    A second uninterrupted training shows whether the device repeats itself at all.
    """
    videos = _make_videos(work, sizes)
    words = [
        "--trainer.max_epochs=3",
        "--trainer.deterministic=true",
        "--trainer.limit_val_batches=1",
        "--model.net.dropout=0.3",
        "--model.net.drop_path=0.1",
        "--model.mixing.mixup_alpha=0.4",
        "--model.optimizer.momentum=0.9",
        "--averaging.kind=ema",
        "--averaging.decay=0.8",
        "--checkpoint.every_n_steps=1",
        "--checkpoint.keep_steps=30",
    ]
    trainings = {name: _start(work / name, videos, sizes, words) for name in ("whole", "again")}
    failures = [text for name, training in trainings.items() if (text := _finish(training, work / name))]
    if failures:
        return Outcome(failures=failures)
    steps = len(_rows(work / "whole"))
    stop = steps // 2 + 1  # not between two epochs
    checkpoint = work / f"whole/run/checkpoints/step-{stop:08d}.ckpt"
    resumed = _start(work / "resumed", videos, sizes, [*words, f"--ckpt_path={checkpoint}"])
    if text := _finish(resumed, work / "resumed"):
        return Outcome(failures=[text])
    of_resume, of_device = (_state_difference(work / "whole", work / name) for name in ("resumed", "again"))
    rows = {name: _rows(work / name) for name in ("whole", "resumed")}
    first = [next(r["train/loss"] for r in found if r["step"] == stop + 1) for found in rows.values()]
    figures = {
        "steps": steps, "resumed_after": stop, "difference": of_resume, "difference_of_two_uninterrupted": of_device,
        "loss_after_resume": first,
    }  # fmt: skip
    if first[0] != first[1]:
        failures.append(f"the first loss after the resume is {first[1]!r}, without it {first[0]!r}")
    if of_resume > of_device:
        failures.append(
            f"weights, their average or the optimizer's state differ by {of_resume:.1e} (relative), those of two "
            f"uninterrupted trainings by {of_device:.1e}"
        )
    same = "equal to the bit" if of_resume == 0 else f"differ by {of_resume:.1e}"
    twice = "equal to the bit" if of_device == 0 else f"differing by {of_device:.1e}: the device does not repeat itself"
    lines = [
        f"Resumed after step {stop} of {steps}, with dropout, stochastic depth, mixup and averaged weights, and "
        f"`trainer.deterministic: true`: weights, average and optimizer {same} (two uninterrupted trainings: {twice})."
    ]
    return Outcome(figures, lines, failures)


def _make_videos(work: Path, sizes: Sizes) -> Path:
    from video_gn.prepare.synthetic import synthesize

    synthesize(work / "videos", num_train_per_class=sizes.pick(8, 2), num_val_per_class=1, num_frames=24)
    return work / "videos"


def _start(
    path: Path,
    videos: Path,
    sizes: Sizes,
    words: Sequence[str],
    *,
    device: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a training into `path`/run; what it says goes to `path`/log.txt."""
    path.mkdir(parents=True)
    side, width = sizes.pick(64, 32), sizes.pick(16, 4)
    device = device or sizes.device
    where = ["--trainer.accelerator=cpu"]
    if device.startswith("cuda"):
        where = ["--trainer.accelerator=gpu", f"--trainer.devices=[{device.partition(':')[2] or 0}]"]
    common = [
        "fit",
        "--seed_everything=0",
        f"--run_dir={path / 'run'}",
        f"--data.train={videos}",
        *where,
        "--trainer.log_every_n_steps=1",
        "--trainer.logger=false",
        "--model.net=video_gn.models.i3d",
        f"--model.net.width={width}",
        "--model.net.norm=group",
        f"--model.net.num_groups={width // 2}",
        "--model.optimizer.reference_batch_size=null",
        "--model.optimizer.lr=0.01",
        "--model.schedule.name=constant",
        "--data.clip.num_frames=8",
        "--data.clip.stride=2",
        f"--data.augment.short_side_px=[{side}, {side + 4}]",
        f"--data.augment.crop_px={side}",
        f"--data.views.short_side_px={side}",
        f"--data.batch_size={sizes.pick(8, 4)}",
        "--data.loader.num_workers=1",
    ]
    with (path / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "video_gn", *common, *words],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _finish(training: subprocess.Popen[bytes], path: Path) -> str:
    """Wait for a training; why it failed, or ""."""
    status = training.wait()
    if status == 0:
        return ""
    text = (path / "log.txt").read_text(errors="replace")
    sys.stderr.write(text)
    lines = text.strip().splitlines() or ["it said nothing"]
    return f"the training {path.name!r} ended with exit status {status}: {lines[-1]}"


def _rows(path: Path) -> list[dict[str, Any]]:
    from video_gn.run.metrics_file import read_metrics

    return read_metrics(path / "run/metrics.csv")


# What a checkpoint holds of the training's state; the rest are clocks and settings.
_STATE = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")


def _state_difference(one: Path, other: Path) -> float:
    """The largest relative difference of two trainings' last checkpoints; 0 if equal to the bit."""
    import torch

    states = [torch.load(p / "run/checkpoints/last.ckpt", map_location="cpu", weights_only=True) for p in (one, other)]
    return _difference(*({key: state[key] for key in _STATE} for state in states))


def _difference(one: Any, other: Any) -> float:
    import torch

    if isinstance(one, torch.Tensor):
        if torch.equal(one, other):
            return 0.0
        one, other = one.double(), other.double()
        return float((one - other).abs().max() / one.abs().max())
    if isinstance(one, Mapping):
        one, other = list(one.items()), list(other.items())
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return max((_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else float("inf")
