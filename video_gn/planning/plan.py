"""Puts a plan together: what was counted, measured and assumed, and what follows for hours, cores and disk."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from typing import Any

import torch

from video_gn.errors import ConfigError
from video_gn.models.tables import BATCH_FAMILY, LAYOUTS
from video_gn.planning.figures import Plan, Request
from video_gn.planning.job import Length, Machine, length_of, rate_of
from video_gn.planning.loading import Reading, look_at, measure_prepared, measure_training, measure_views, spread
from video_gn.planning.memory import (
    Step,
    StepMemory,
    build_meta_net,
    count_memory,
    count_training_macs,
    count_view_macs,
)
from video_gn.planning.speed import measure_speed, memory_of_machine
from video_gn.processes import num_cores
from video_gn.shown import count
from video_gn.training.checks import check_batches

# Of a GPU's memory: CUDA's context and libraries, their workspaces, and gaps between tensors. Not measured: assumed.
GPU_RESERVE_BYTES, GPU_SHARE = 1.0e9, 0.95
# Of a machine's memory, for the step of a training on CPUs: the rest is for Python, workers and freed blocks.
CPU_SHARE = 0.7
_MOST_WORKERS = 8  # of `data.loader.num_workers` null
_FEW_CLIPS = 8  # below, the paper's Batch Norm on Kinetics loses accuracy (Wu & He 2018, Table 8)
_MANY_FILES = 100_000
_CHANGE = 0.05  # share of a figure from which an alternative is worth a line


def make_plan(request: Request) -> Plan:
    """Count, measure and predict.

    Raises:
        DecodeError, RunError: for videos that cannot be read.
    """
    return _Planner(request).plan()


def _check_own(step: Step) -> None:
    """Refuse what cannot be counted of somebody's own net."""
    name = step.net["class"]
    if step.half or step.checkpointed:
        raise ConfigError(
            f"a plan for {name}, which is not of video_gn.models, counts float32 without activation checkpointing. Add "
            "--trainer.precision 32-true --model.activation_checkpointing false."
        )
    try:
        forward_macs, _ = count_training_macs(step)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{name} must run on tensors without data (torch's device meta) to be planned for, got "
            f"{type(error).__name__}: {str(error).splitlines()[0]}. Train a few steps instead: --trainer.max_steps 4."
        ) from error
    if not forward_macs:
        raise ConfigError(f"{name} must have convolutions or linear layers to be planned for. Times follow from these.")


class _Planner:
    def __init__(self, request: Request) -> None:
        self.asked, self.data = request, request.datamodule
        side = self.data.augment.crop_px
        arguments = dict(request.net)
        if self.data.classes:
            arguments["num_classes"] = len(self.data.classes)
        self.on_cpu = request.gpu_memory_gb is None
        self.step = Step(
            arguments,
            (self.data.clip.num_frames, side, side),
            request.optimizer,
            half=str(request.trainer["precision"]).startswith(("bf16", "16")),
            checkpointed=request.is_checkpointed,
            device="cpu" if self.on_cpu else "cuda",
            own=request.own,
        )
        if request.own is not None:
            _check_own(self.step)
        self.batch_size, self.repeats = self.data.batch_size, self.data.augment.repeats
        self._counted: dict[str, StepMemory] = {}
        where = "this machine's CPU" if self.on_cpu else count(request.num_processes, "GPU")
        frames, height, width = self.step.clip_THW
        net = ", width ".join([build_meta_net(self.step).title, *map(str, filter(None, [arguments.get("width")]))])
        self.out = Plan(f"{net}; clips of {frames} x {height} x {width}, {self.batch_size} a batch, on {where}")

    def plan(self) -> Plan:
        self._network()
        self._memory()
        self._batches()
        self._loading()
        self._time()
        self._disk()
        self._alternatives()
        return self.out

    # ---- network and memory ------------------------------------------------------------------

    def _network(self) -> None:
        out, step = self.out, self.step
        net = build_meta_net(step)
        out.add("num_parameters", sum(p.numel() for p in net.parameters()), "counted")
        self.forward_macs, self.train_macs = count_training_macs(step)
        how = "multiply-adds of convolutions and linear layers"
        out.add("clip_forward_macs", self.forward_macs, "counted", how)
        out.add("clip_training_macs", self.train_macs, "counted", "with the backward pass")
        crops = self.data.test_crops
        views = self.data.views.num_clips * {"three": 3}.get(crops.crops, 1)
        side = crops.crop_px
        view_HW, note = (side, side), f"{views} views of {side} x {side}"
        if crops.crops == "full":
            view_HW = (crops.short_side_px, round(crops.short_side_px * 4 / 3))
            note = f"{views} views, assumed to be 4:3"
        self.num_views, self.view_macs = views, count_view_macs(step, (step.clip_THW[0], *view_HW))
        out.add("test_video_macs", views * self.view_macs, "counted", note)

    def _memory(self) -> None:
        out, asked, step = self.out, self.asked, self.step
        how = "tensors alive at the highest point of a step"
        found = self._count(step)
        for part in ("weights", "gradients", "optimizer"):
            out.add(f"{part}_bytes", getattr(found, part), "counted")
        out.add("activations_bytes", found.activations(self.batch_size), "counted")
        peak = out.add("step_bytes", self._peak(step), "counted", how)
        if asked.gpu_memory_gb is None:
            limit, note = CPU_SHARE * memory_of_machine(), f"{CPU_SHARE:.0%} of this machine's memory"
        else:
            limit = GPU_SHARE * asked.gpu_memory_gb * 1e9 - GPU_RESERVE_BYTES
            note = f"{GPU_SHARE:.0%} of {asked.gpu_memory_gb:g} GB, less {GPU_RESERVE_BYTES / 1e9:g} GB for CUDA"
        self.limit = out.add("memory_limit_bytes", limit, "assumed", note)
        self.largest = {
            name + more: self._largest(replace(step, half=half, checkpointed=checkpointed))
            for name, half in (("float32", False), ("bf16-mixed", True))
            for more, checkpointed in (("", False), (" with activation checkpointing", True))
            if step.own is None or not (half or checkpointed)
        }
        out.add("largest_batches", self.largest, "counted")
        if peak > limit:
            fits = [f"data.batch_size {n} in {name}" for name, n in self.largest.items() if n]
            out.problems.append(
                f"a step of {count(self.batch_size, 'clip')} takes {peak / 1e9:.2f} GB, more than the "
                f"{limit / 1e9:.2f} GB that are left for it. It fits with {' or '.join(fits)}"
                + (
                    ", with trainer.accumulate_grad_batches for the same step."
                    if fits
                    else "no batch: take smaller clips."
                )
            )

    def _count(self, step: Step) -> StepMemory:
        key = str(step)
        if key not in self._counted:
            self._counted[key] = count_memory(step)
        return self._counted[key]

    def _more(self, found: StepMemory) -> int:
        """Bytes of an average of the weights, less what a sharded run leaves to other processes."""
        fixed = found.weights + found.gradients + found.optimizer
        own = fixed + (found.weights if self.asked.averages else 0)
        if self.asked.trainer["strategy"] == "sharded":
            own = math.ceil(own / self.asked.num_processes)
        return own - fixed

    def _peak(self, step: Step) -> int:
        found = self._count(step)
        return found.peak(self.batch_size) + self._more(found)

    def _largest(self, step: Step) -> int:
        found = self._count(step)
        return found.largest_batch(self.limit - self._more(found), multiple=self.repeats)

    # ---- batches -----------------------------------------------------------------------------

    def _batches(self) -> None:
        out, asked = self.out, self.asked
        num_train = len(self.data.manifests["train"])
        global_batch = self.batch_size * asked.num_processes
        batches = num_train * self.repeats // global_batch
        if not batches:
            out.problems.append(
                f"{count(num_train, 'training video')} do not fill one batch of {self.batch_size} on "
                f"{count(asked.num_processes, 'process', 'processes')}. It fits with data.batch_size "
                f"{max(1, num_train * self.repeats // asked.num_processes)} or fewer processes."
            )
        self.length: Length = length_of(asked.trainer, max(1, batches))
        accumulate = asked.trainer["accumulate_grad_batches"]
        note = f"{asked.num_processes} x {self.batch_size}" + (f" x {accumulate}" if accumulate > 1 else "")
        out.add("clips_of_step", global_batch * accumulate, "follows", note)
        out.add("epochs", round(self.length.epochs, 3), "follows")
        out.add("steps", self.length.steps, "follows")
        self.num_clips = out.add("clips", self.length.batches * global_batch, "follows")
        norm = self.step.net.get("norm")
        shape = (self.batch_size, 3, *self.step.clip_THW)
        try:
            check_batches(
                build_meta_net(replace(self.step, half=False)),
                shape,
                world_size=asked.num_processes,
                has_statistics=asked.has_weights,
                is_bfloat16_on_cpu=self.on_cpu and str(asked.trainer["precision"]).startswith("bf16"),
            )
        except ValueError as error:
            out.problems.append(str(error))
        clips = self.batch_size * (asked.num_processes if norm == "sync_batch" else 1)
        if norm in BATCH_FAMILY and norm != "frozen_batch" and clips < _FEW_CLIPS:
            out.notes.append(f"{norm} norm averages over {count(clips, 'clip')}; group norm needs no batch.")

    # ---- loading -----------------------------------------------------------------------------

    def _loading(self) -> None:
        out, asked, data = self.out, self.asked, self.data
        records = data.manifests["train"].records
        self.files = look_at(records, spread(asked.sample, len(records)))
        self.reading: Reading = measure_training(data, asked.sample)
        how = f"{count(self.reading.num_videos, 'training video')} spread over the list"
        if self.reading.num_broken:
            out.notes.append(f"{self.reading.num_broken} of {how} could not be read; `video-gn data scan` finds all.")
        out.add("loading_core_seconds", self.reading.core_seconds, "measured", how)
        out.add("loaded_clips_per_second_and_core", 1 / self.reading.core_seconds, "measured", how)
        # A process that waits for files needs more workers than cores.
        self.waiting = max(1.0, self.reading.seconds / self.reading.core_seconds)
        if self.reading.read_bytes is not None:
            out.add("read_bytes_per_clip", self.reading.read_bytes, "measured", how)
        if self.files is not None:
            files = self.files
            how = f"{files.codec}, short side {files.short_side_px:g} px, {files.num_frames:g} frames"
            out.add("video_bytes", files.mean_bytes, "measured", how)
            parts = {id(m): len(m) for m in data.manifests.values()}
            total = sum(parts.values())
            out.add("data_bytes", files.mean_bytes * total, "follows", f"{count(total, 'video')} of all lists")
        few = max(1, asked.sample // 4)
        self.val_reading = measure_views(data.val_dataloader(), few)
        self.test_reading = measure_views(data.test_dataloader(), few)
        out.add("test_video_core_seconds", self.test_reading.core_seconds, "measured", "all views of a video")

    # ---- time --------------------------------------------------------------------------------

    def _time(self) -> None:
        out, asked, data = self.out, self.asked, self.data
        if asked.clips_per_second is not None:
            seconds = 1 / asked.clips_per_second
            forward = seconds * self.forward_macs / self.train_macs
            out.add("compute_seconds", seconds, "assumed", "as given: --clips_per_second")
        else:
            speed = measure_speed(self.step, self.batch_size)
            seconds, forward = speed.seconds, speed.forward_seconds
            how = f"this machine's {speed.device}, {count(speed.batch_size, 'clip')} a step"
            if speed.device == "CPU":
                how += f", {count(speed.num_threads, 'thread')}"
            out.add("compute_seconds", seconds, "measured", how)
            if speed.device == "CPU" and not self.on_cpu:
                out.notes.append(
                    "The rate of a GPU is not known: hours are those of this machine's CPU. Give --clips_per_second."
                )
        self.seconds = seconds
        load, here = out.machine["load_average"], out.machine["num_cores"]
        if load > 0.5 * here:
            out.notes.append(f"This machine was busy (load {load:.1f} on {here} cores): measured times are too long.")
        nodes = int(asked.trainer["num_nodes"])
        cores = asked.num_cores or num_cores() * (1 if self.on_cpu else nodes)
        workers = data.loader.num_workers
        if workers is None:
            workers = min(_MOST_WORKERS, max(1, cores // nodes))
        threads = torch.get_num_threads() if self.on_cpu else 0
        self.machine = Machine(asked.num_processes, cores, workers, threads)
        out.add(
            "num_cores", cores, "assumed", "--num_cores" if asked.num_cores else "those of this machine on each node"
        )
        wanted = asked.num_processes / seconds
        out.add("computed_clips_per_second", wanted, out.figures["compute_seconds"].basis, "all processes")
        out.add(
            "cores_to_feed", wanted * self.reading.core_seconds, "follows", "cores that load as fast as it computes"
        )
        out.add("workers_to_feed", math.ceil(wanted * self.reading.core_seconds * self.waiting), "follows",
                "loading workers of all processes, which also wait for files")  # fmt: skip
        rate, bottleneck = rate_of(self.machine, seconds, self.reading.core_seconds)
        out.add("clips_per_second", rate, "follows", f"limited by {bottleneck}")
        out.add("bottleneck", bottleneck, "follows")
        if self.reading.read_bytes is not None:
            out.add(
                "read_bytes_per_second", rate * self.reading.read_bytes, "follows", "at that rate, of all processes"
            )
        self.train_hours = out.add("training_hours", self.num_clips / rate / 3600, "follows")
        scale = self.view_macs / self.forward_macs
        val_rate, _ = rate_of(self.machine, forward * scale, self.val_reading.core_seconds)
        num_val = self.length.validations * len(data.manifests["val"])
        how = count(self.length.validations, "validation")
        self.val_hours = out.add("validation_hours", num_val / val_rate / 3600, "follows", how)
        out.add("hours", self.train_hours + self.val_hours, "follows", "from the first step to the end")
        test_rate, by = rate_of(self.machine, self.num_views * forward * scale, self.test_reading.core_seconds)
        num_test = len(data.manifests["test"])
        out.add("test_hours", num_test / test_rate / 3600, "follows", f"{count(num_test, 'video')}, limited by {by}")

    # ---- disk --------------------------------------------------------------------------------

    def _disk(self) -> None:
        out, asked = self.out, self.asked
        one = out["weights_bytes"] * (2 if asked.averages else 1) + out["optimizer_bytes"]
        out.add("checkpoint_bytes", one, "counted", "weights and optimizer state")
        kept = 2 + asked.keep_steps
        scores = 4 * len(self.data.manifests["test"]) * self.num_views * self.step.net["num_classes"]
        note = f"{kept} checkpoints, one more while it is written, and the test's scores"
        needed = out.add("run_dir_bytes", (kept + 1) * one + scores, "follows", note)
        place = next(path for path in (asked.run_dir.absolute(), *asked.run_dir.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free
        out.add("free_bytes", free, "measured", os.fspath(place))
        if free < needed:
            out.problems.append(
                f"{asked.run_dir} must have {needed / 1e9:.2f} GB free, got {free / 1e9:.2f} GB. Free some, or choose "
                "another --run_dir."
            )

    # ---- alternatives ------------------------------------------------------------------------

    def _alternatives(self) -> None:
        """Changes of the config that change memory, cores or hours."""
        self._row("as it is", "")
        if self.step.own is None:
            self._other_nets()
        self._prepared()
        if (number := len(self.data.manifests["train"])) > _MANY_FILES:
            self.out.notes.append(f"data prepare --shards 1000 makes {-(-number // 1000):,} files of {number:,}.")

    def _other_nets(self) -> None:
        data, step, base = self.data, self.step, self.reading.core_seconds
        if not step.checkpointed:
            other = replace(step, checkpointed=True)
            more = count_training_macs(other)[1] / self.train_macs
            self._row("activation checkpointing", "model.activation_checkpointing true", other, more)
        if not step.half and not self.on_cpu:
            self._row("half precision", "trainer.precision bf16-mixed", replace(step, half=True), None)
        norm = "batch" if step.net["norm"] == "group" else "group"
        groups = {"num_groups": None, "channels_per_group": None, "norm_options": None}
        other = replace(step, net={**step.net, "norm": norm, **groups})
        self._row(f"{norm} norm", f"model.net.norm {norm}", other, 1.0)
        frames = step.clip_THW[0] // 2
        least = LAYOUTS[step.net["layout"]].min_frames if "layout" in step.net else 1
        if frames >= least and data.clip.target_fps is None:
            other = replace(step, clip_THW=(frames, *step.clip_THW[1:]))
            stride = 2 * data.clip.stride
            few = max(1, self.asked.sample // 4)
            seconds = [
                measure_training(data, few, **clip).core_seconds
                for clip in ({}, {"num_frames": frames, "stride": stride})
            ]
            self._row(
                f"{frames} frames, stride {stride}", f"data.clip: num_frames {frames}, stride {stride}", other,
                count_training_macs(other)[1] / self.train_macs, base * seconds[1] / seconds[0],
            )  # fmt: skip

    def _prepared(self) -> None:
        if self.files is None:
            return
        # No smaller than what training and tests resize to: nothing is to be scaled up.
        short_side = 2 * math.ceil(max(*self.data.augment.short_side_px, self.data.views.short_side_px, 16) / 2)
        found = measure_prepared(self.data, self.files, short_side)
        if found is not None:
            self._row(
                f"prepared to {short_side} px", f"data prepare --short_side_px {short_side}",
                core_seconds=self.reading.core_seconds * found[0], data_share=found[1],
            )  # fmt: skip

    def _row(
        self,
        change: str,
        setting: str,
        step: Step | None = None,
        compute_share: float | None = 1.0,
        core_seconds: float | None = None,
        data_share: float = 1.0,
    ) -> None:
        """Add an alternative if its figures differ; `compute_share` None is not known."""
        seconds = None if compute_share is None else self.seconds * compute_share
        loading = self.reading.core_seconds if core_seconds is None else core_seconds
        step = step or self.step
        row: dict[str, Any] = {
            "change": change,
            "setting": setting,
            "step_bytes": self._peak(step),
            "largest_batch": self._largest(step),
            "cores_to_feed": None if seconds is None else self.machine.num_processes / seconds * loading,
            "training_hours": None,
            "data_bytes": None if self.files is None else self.out["data_bytes"] * data_share,
        }
        if seconds is not None:
            row["training_hours"] = self.num_clips / rate_of(self.machine, seconds, loading)[0] / 3600
        rows = self.out.alternatives
        if not rows or any(_differ(rows[0][name], row[name]) for name in row if name not in ("change", "setting")):
            rows.append(row)


def _differ(first: float | None, second: float | None) -> bool:
    return first is not None and second is not None and abs(second - first) > _CHANGE * abs(first)
