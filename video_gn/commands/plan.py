"""`video-gn plan`: what a training will need."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from video_gn.checks import positive
from video_gn.commands._options import Options
from video_gn.commands._terminal import set_up_logging
from video_gn.errors import ConfigError
from video_gn.files import check_place, write_json


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`. Returns 1 if the training does not fit."""
    parser = Options(
        prog="video-gn plan",
        description="Predict what a training will need: memory, the largest batch, cores, bandwidth, hours, disk. Some "
        "videos are read and, unless --clips_per_second is given, some training steps are computed here; nothing is "
        "written. Further words are settings, as of fit: --data.train videos",
        epilog="Exit status: 0 if it fits, 1 if it does not, 2 for bad settings.",
        takes_settings=True,
        usage="video-gn plan -c CONFIG [--gpus N] [--gpu_memory_gb GB] [--clips_per_second R] [--KEY VALUE ...]",
    )
    parser.add_argument("-c", "--config", action="append", default=[], metavar="CONFIG", help="config, as of fit")
    parser.add_argument("--gpus", type=positive, metavar="N", help="GPUs of all nodes (trainer.devices x num_nodes)")
    parser.add_argument(
        "--gpu_memory_gb", type=_above_0, metavar="GB", help="memory of each (this machine's; without one: on its CPU)"
    )
    parser.add_argument(
        "--clips_per_second", type=_above_0, metavar="R", help="training clips that each computes (measured here)"
    )
    parser.add_argument("--num_cores", type=positive, metavar="N", help="cores of all nodes (this machine's on each)")
    parser.add_argument("--sample", type=positive, default=32, metavar="N", help="videos to read and measure (32)")
    parser.add_argument("--output", metavar="FILE", help="json file to write all figures to")
    options, settings = parser.parse_known_args(words)
    set_up_logging()
    if options.output is not None:
        check_place(Path(options.output))
    plan = _plan(options, settings, parser.names())

    from video_gn.planning.page import format_page

    sys.stdout.write(format_page(plan))
    if options.output is not None:
        write_json(options.output, plan.as_json())
    return 1 if plan.problems else 0


def _above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _plan(options: argparse.Namespace, settings: Sequence[str], names: Sequence[str]) -> Any:
    import torch

    from video_gn.commands._run_settings import with_run_config
    from video_gn.commands._settings import config_parser
    from video_gn.commands._trainer import check_values
    from video_gn.data.datamodule import build_datamodule
    from video_gn.models import OwnNet, VideoNet, find_network
    from video_gn.planning.figures import Request
    from video_gn.planning.plan import make_plan
    from video_gn.training.optimizer import OptimizerConfig

    memory_gb, has_gpu = options.gpu_memory_gb, torch.cuda.is_available()
    if options.gpus is not None and memory_gb is None and not has_gpu:
        raise ConfigError("--gpu_memory_gb must be given, got none: this machine has no GPU to ask.")
    parser = config_parser(prog="video-gn plan", also=names)
    given = with_run_config("fit", [word for config in options.config for word in ("-c", config)] + list(settings))
    config = parser.parse_args(given.words)
    check_values(config.trainer, of_another_machine=True)
    config.data.seed = config.seed_everything
    network, arguments = find_network(config.model.net.class_path), dict(config.model.net.get("init_args", {}))
    try:
        data = build_datamodule(config.data.as_dict())
        data.read("fit")
        if data.classes and "num_classes" in arguments:
            arguments["num_classes"] = len(data.classes)
        build = partial(network, **arguments)
        with torch.device("meta"):  # weights are counted, not used
            net = build()
        own = None if isinstance(net, VideoNet) else build
        net = net if isinstance(net, VideoNet) else OwnNet(net)
        optimizer = OptimizerConfig(**config.model.optimizer.as_dict())
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    is_cpu_config = config.trainer.accelerator == "cpu" and options.gpus is None
    if memory_gb is None and has_gpu and not is_cpu_config:
        memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    stem = Path(str(config.config[0])).stem if config.config else "default"
    return make_plan(
        Request(
            net=net.arguments,
            own=own,
            optimizer=optimizer,
            is_checkpointed=config.model.activation_checkpointing,
            has_weights=config.model.weights is not None,
            datamodule=data,
            trainer=config.trainer.as_dict(),
            run_dir=Path(config.run_dir or Path("runs") / stem),
            keep_steps=config.checkpoint.keep_steps,
            averages=config.averaging.kind != "none",
            num_processes=options.gpus or _num_processes(config.trainer, on_gpu=memory_gb is not None),
            gpu_memory_gb=memory_gb,
            clips_per_second=options.clips_per_second,
            num_cores=options.num_cores,
            sample=options.sample,
        )
    )


def _num_processes(trainer: Any, *, on_gpu: bool) -> int:
    """Processes that Lightning would start."""
    import torch

    devices = trainer.devices
    if isinstance(devices, list):
        devices = len(devices)
    if devices in ("auto", -1, "-1"):
        devices = max(1, torch.cuda.device_count()) if on_gpu else 1
    return int(devices) * int(trainer.num_nodes)
