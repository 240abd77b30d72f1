"""Where `fit`, `validate`, `test` and `predict` take their settings and their checkpoint from."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from video_gn.commands._options import Options
from video_gn.damage import read_settings
from video_gn.errors import CheckpointError, ConfigError, RunError
from video_gn.run import directory, torchrun
from video_gn.run.checkpoint_files import environment_differences, newest_checkpoint, read_checkpoint
from video_gn.run.directory import RunDirectory
from video_gn.run.saved_config import config_differences
from video_gn.weights.about import KEY
from video_gn.weights.named import find_weights

if TYPE_CHECKING:
    from video_gn.data.datamodule import VideoDataModule

log = logging.getLogger(__name__)

_ADVICE = "Give --run_dir of a training, or -c CONFIG."


# ---- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunWords:
    """A command's words with the configs in front, so that each option overrides them."""

    words: list[str]  # the words, with all that follows from the run whose config is taken
    config: Path | None = None  # the config that a training has saved, if one is among the configs
    is_implied: bool = False  # whether it is taken because no config was given


def with_run_config(command: str, words: Sequence[str]) -> RunWords:
    """Take the config of the run that --run_dir or --ckpt_path names, if no config is given.

    A run's config stands for the run where it lies now: its directory is the run's, and for a test its own `ckpt_path`,
    where the training began, is not the checkpoint to test. Without a config and a run it is a ConfigError.
    """
    parser = Options(prog=f"video-gn {command}", add_help=False, takes_settings=True)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--run_dir")
    parser.add_argument("--ckpt_path")
    given, others = parser.parse_known_args(words)
    run_dir, ckpt_path = (None if value == "null" else value for value in (given.run_dir, given.ckpt_path))
    found = [_saved_config(Path(config)) for config in given.config]
    is_implied = False
    if not found and not {"-h", "--help"} & set(others):
        found = _implied_config(command, run_dir, ckpt_path, others)
        is_implied = bool(found)
    first = [word for config, _ in found for word in ("--config", str(config))]
    own, run = next((pair for pair in found if pair[1] is not None), (None, None))
    if run is not None:
        run_dir = run_dir or str(run)
        first += [] if command == "fit" else ["--ckpt_path=null"]
        # It was trained on so many nodes; now the launcher decides.
        first += ["--trainer.num_nodes=1"] if is_implied and "SLURM_STEP_ID" not in os.environ else []
        first += ["--trainer.devices=auto"] if is_implied and torchrun.from_torchrun() else []
    last = [f"--{name}={value}" for name, value in (("run_dir", run_dir), ("ckpt_path", ckpt_path)) if value]
    return RunWords([*first, *others, *last], own, is_implied)


def _saved_config(path: Path) -> tuple[Path, Path | None]:
    """The file of a config, and its run if a training has saved it; a run's directory stands for its config."""
    run = RunDirectory(path if path.is_dir() else path.parent)
    if torchrun.launched_rank() == 0:
        run.settle_after_kill()
    if path.is_dir():
        path = run.settings() or path
    elif not path.exists():  # another process of this launch has just set it aside
        path = (run.displaced() or run.path) / path.name
    is_saved = path.name == directory.CONFIG or path.match(directory.RESUME_CONFIGS)
    if not is_saved or not (path.parent / directory.CHECKPOINTS).is_dir():
        return path, None
    if path.is_file():
        try:
            read_settings(path)
        except (OSError, ValueError) as error:
            advice = "Give the config that it was trained with: -c CONFIG."
            raise ConfigError(f"{path} is damaged ({error}). {advice}") from error
    return path, run.path


def _implied_config(
    command: str, run_dir: str | None, ckpt_path: str | None, others: Sequence[str]
) -> list[tuple[Path, Path | None]]:
    """The config of the checkpoint's run, or else of the run directory; none where all settings are options."""
    names_net = any(word.partition("=")[0] in ("--model.net", "--model.net.class_path") for word in others)
    if names_net or (command == "fit" and ckpt_path is None):  # fit: a new training
        return []
    runs = [] if run_dir is None else [Path(run_dir)]
    if ckpt_path is not None and ckpt_path not in ("best", "last"):
        run = run_of(Path(ckpt_path))
        runs = ([run] if run is not None and run.is_dir() else []) + runs
    for run in filter(Path.is_dir, runs):
        config, _ = _saved_config(run)
        if config.is_file():
            return [(config, run)]
    if not runs and command == "data show":
        raise ConfigError(f"{command} must have a run or a config, got neither. {_ADVICE}")
    if not runs:
        return []
    missing = f"has no {directory.CONFIG}" if runs[-1].is_dir() else "does not exist"
    raise ConfigError(f"{runs[-1]} {missing}, so its settings are not known. {_ADVICE}")


def settle_lists(command: str, given: RunWords, options: Namespace) -> None:
    """Leave out lists of a run's config that are gone, unless a test needs them: those are a ConfigError."""
    if given.config is None or given.words.count("--config") > 1 or command == "predict":
        return
    data = options.data
    tested = {"test": ("test", "val"), "validate": ("val", "test")}.get(command, ())
    needed = next((name for name in tested if data[name] is not None), None)  # without one it is drawn from train
    for name in ("train", "val", "test"):
        path = data[name]
        is_told = any(word.partition("=")[0] == f"--data.{name}" for word in given.words)
        if path is None or is_told or set(path) & set("*?[{") or Path(path).exists():
            continue
        if needed in (None, name):
            raise ConfigError(
                f"data.{name} must be there, got {path!r}, as {given.config} has it. Give --data.{name}, or start in "
                f"the directory that the training was started in; this is {Path.cwd()}."
            )
        log.info("data.%s, %s, is not there; a %s on data.%s does without", name, path, command, needed)
        data[name] = None


def run_of(checkpoint: Path) -> Path | None:
    """The run of a checkpoint, or of a path that stands for its best; None for a file from elsewhere."""
    if checkpoint.is_dir():
        return checkpoint
    return checkpoint.parent.parent if checkpoint.parent.name == directory.CHECKPOINTS else None


# ---- the checkpoint ------------------------------------------------------------------------------


@dataclass
class Start:
    """The checkpoint that a command begins with."""

    path: Path | None = None  # its file; None without one
    # what it says of itself, or what weights say that are tested unchanged
    about: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    resumes: bool = False  # whether it is this run's own: another run's begins a new one here


def find_start(command: str, options: Namespace, run: RunDirectory, *, weights_count: bool) -> Start:
    """Find what --ckpt_path stands for, and read what it says of itself.

    If `weights_count`, a command other than fit may do with `model.weights` alone.

    Raises:
        RunError: For a test without a checkpoint.
        CheckpointError: For one that cannot be read.
    """
    wanted = options.ckpt_path
    checkpoints = run.path / directory.CHECKPOINTS
    content: dict[str, Any] | None = None
    if command == "fit" and wanted == "last":
        found, content = newest_checkpoint(checkpoints) or (None, None)
    elif wanted is None:
        found = run.whole_checkpoint()
    else:
        found = run.find_checkpoint(wanted)
    if found is not None:
        return _read(command, options, found, content, checkpoints)
    if command == "fit":
        log.info("no checkpoint yet in %s: starting afresh", checkpoints)
        return Start()
    if options.model.weights is None or wanted is not None or not weights_count:
        raise RunError(f"no checkpoint in {checkpoints}. Train first, or give --ckpt_path or --run_dir.")
    return Start(about=_about_weights(options, checkpoints))


def _read(command: str, options: Namespace, path: Path, content: dict[str, Any] | None, checkpoints: Path) -> Start:
    if content is None:
        content = read_checkpoint(path, resume=command == "fit")
    resumes = path.parent.resolve() == checkpoints.resolve()  # the file itself may be a link to another disk
    start = Start(path, dict(content[KEY]), int(content["global_step"]), resumes)
    log.info("checkpoint: %s (step %d)", path, start.step)
    if command == "fit":
        for line in environment_differences(start.about.get("environment") or {}):
            log.warning("the run will not be the same bit for bit: %s", line)
    if options.model.weights is not None:
        log.info("model.weights (%s) is not loaded: the checkpoint replaces it", options.model.weights)
    return start


def _about_weights(options: Namespace, checkpoints: Path) -> dict[str, Any]:
    """What weights say of themselves that are tested without a training."""
    from video_gn.weights.files import read_file
    from video_gn.weights.formats import recognize
    from video_gn.weights.zoos import zoo_classes, zoo_protocol

    log.info("no checkpoint in %s: testing %s unchanged", checkpoints, options.model.weights)
    try:
        content = read_file(find_weights(directory.checkpoint_of(options.model.weights)), header_only=True)
        source = recognize(content, format=options.model.weights_options.format)
    except CheckpointError as error:
        raise CheckpointError(f"no checkpoint in {checkpoints}, and {error}") from error
    clips = source.about
    if not clips and not source.is_2d:
        clips = zoo_protocol(source, (options.model.net.get("init_args") or {}).get("layout"))
    known: dict[str, Any] = {name: clips[name] for name in ("clip", "views") if name in clips}
    return {"classes": list(source.classes or zoo_classes(source)), **known}


# ---- what differs from the training --------------------------------------------------------------

# Settings of validation and test views; the first two change what the network sees of a clip, and the others which
# clips and parts of the frame it sees.
_SIZES = ("short_side_px", "crop_px")
_OF_VALIDATION, _OF_TEST = (*_SIZES, "val"), (*_SIZES, "num_clips", "spacing", "crops")
# What decides which videos are held out of the training list.
_OF_SPLIT = ("seed_everything:", "data.split.", "data.source.fraction:", "data.source.only_classes:")


def log_differences(command: str, start: Start, options: Namespace, data: VideoDataModule) -> None:
    """Log what differs from the training of a checkpoint or of weights, a line each.

    It is a warning if the network then sees other clips than in training, or may be tested on what it was trained on.
    A resumed training is left to `SaveConfig`.
    """
    if command == "fit" and start.resumes:
        return
    of = "the weights" if start.path is None else "the checkpoint's training"
    here = data.describe()
    names = _OF_TEST if command in ("test", "predict") else _OF_VALIDATION
    for table, keys in (("clip", tuple(here["clip"])), ("views", names)):
        stored = start.about.get(table) or {}
        for key in (key for key in keys if key in stored and stored[key] != here[table][key]):
            text = f"data.{table}.{key}: {stored[key]} in {of}, {here[table][key]} here"
            if table == "clip" or key in _SIZES:
                log.warning("%s: the network sees other clips than it was trained with", text)
            else:
                log.info("%s", text)
    if command in ("validate", "test") and start.path is not None:
        _log_other_split(command, start.path, options, data)


def _log_other_split(command: str, checkpoint: Path, options: Namespace, data: VideoDataModule) -> None:
    """Warn if videos are drawn from the training list in another way than by the checkpoint's run."""
    manifests = data.manifests
    tested = manifests["val" if command == "validate" else "test"]
    run = run_of(checkpoint)
    if run is None or "train" not in manifests or tested.origin != manifests["train"].origin:
        return
    try:
        config = RunDirectory(run).settings()
    except ConfigError as error:
        log.warning("whether other videos are held out than in the training is not known: %s", error)
        return
    if config is None:
        return
    stored = read_settings(config)
    for line in config_differences(stored, options.as_dict()):
        if line.startswith(_OF_SPLIT):
            log.warning(
                "config differs from %s: %s: other videos are held out, so that the network may have been trained on "
                "some that are tested", config, line,
            )  # fmt: skip
