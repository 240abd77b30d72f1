"""`video-gn fit`, `validate`, `test` and `predict`: LightningCLI with a run directory."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry

from video_gn.commands._terminal import set_up_logging
from video_gn.commands._trainer import TRAINER_DEFAULTS, check_trainer
from video_gn.data.datamodule import VideoDataModule, build_datamodule
from video_gn.data.loader import explain
from video_gn.errors import CheckpointError, ConfigError, ManifestError, RunError
from video_gn.evaluation.writer import EvaluationWriter
from video_gn.files import naming_full_disk
from video_gn.report import write_report
from video_gn.run import checkpoint_files as checkpoint
from video_gn.run import slurm
from video_gn.run import torchrun as launch
from video_gn.run.broken_videos import BrokenVideos
from video_gn.run.checkpoints import AtomicCheckpointIO, RunCheckpoint
from video_gn.run.directory import RunDirectory, SaveConfig
from video_gn.run.lightning_internals import built, keep_signal_handlers, subcommand_parser
from video_gn.run.memory import keep_freed_memory
from video_gn.run.metrics_csv import MetricsCSV
from video_gn.run.preemption import Preemption
from video_gn.run.progress import LineProgress, TerminalProgress
from video_gn.run.ranks import RankLog, SameData
from video_gn.run.signals import StopFlag
from video_gn.training.averaging import AveragingConfig
from video_gn.training.ddp import DDPConfig, SteadyDDP
from video_gn.training.guard import NonFiniteGuard
from video_gn.training.module import VideoClassifier
from video_gn.training.precise_bn import PreciseBN
from video_gn.training.sharded import check_sharding
from video_gn.weights.about import KEY
from video_gn.weights.convert import zoo_labels
from video_gn.weights.files import read_file
from video_gn.weights.formats import recognize
from video_gn.weights.named import file_digest, find_weights
from video_gn.weights.report import LoadReport

log = logging.getLogger(__name__)

_USAGE = "video-gn {} -c CONFIG [--run_dir DIR] [--ckpt_path best|last|FILE] [--KEY VALUE ...]"


class VideoCLI(LightningCLI):
    """Adds the run directory, checkpoints that resume, and the network's class count from the data.

    Args:
        command: "fit", "validate", "test" or "predict".
        settings: of `LightningCLI`.
    """

    flag = StopFlag()  # signals come to the process, not to a run
    rank_log: RankLog
    run_directory: RunDirectory
    run_dir: Path
    about: dict[str, Any]
    global_step: int
    asked: str | None
    resumes: bool
    load_report: LoadReport | None
    moved: Path | None = None

    def __init__(self, command: str, **settings: Any) -> None:
        self.command = command
        super().__init__(VideoClassifier, VideoDataModule, **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is run: the parsers of all four cost a second of every start."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add --run_dir and what a run has beside model, data and trainer; one seed for everything."""
        _add_run_arguments(parser)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's hyper-parameters override the command line; ours holds none."""

    @property
    def options(self) -> Namespace:
        """The subcommand's resolved arguments."""
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Find run directory and checkpoint, read the lists, and set what follows from them in the config."""
        options = self.options
        sizes = {"num_nodes": options.trainer.num_nodes, "devices": options.trainer.devices}
        if launch.from_torchrun():
            options.trainer.num_nodes, options.trainer.devices = launch.torchrun_sizes(**sizes)
        else:
            slurm.check_launch(**sizes, resolve=SLURMEnvironment.resolve_root_node_address)
        configs = options.get("config") or []
        stem = Path(str(configs[0])).stem if configs else "default"
        self.run_dir = Path(options.run_dir or Path("runs") / stem)
        options.run_dir = str(self.run_dir)
        options.checkpoint.directory = str(self.run_dir / "checkpoints")
        self.run_directory = RunDirectory(self.run_dir)
        self.about, self.global_step, self.resumes = {}, 0, False
        self._find_checkpoint(options)
        source = options.data.source
        # With `only_classes` a list may hold others too; what is left is compared with the checkpoint's.
        open_classes = source.classes is None and not source.only_classes
        if self.subcommand != "fit" and open_classes and self.about.get("classes"):
            source.classes = list(self.about["classes"])
        try:
            self.prepared = build_datamodule(options.data.as_dict())
        except (ValueError, TypeError) as error:
            raise ConfigError(f"data: {error}") from error
        self.prepared.read(self.subcommand)
        self._set_num_classes(options)

    def _find_checkpoint(self, options: Namespace) -> None:
        wanted = self.asked = options.ckpt_path
        if self.subcommand == "fit" and wanted is None:
            return
        content: dict[str, Any] | None = None
        if self.subcommand == "fit" and wanted == "last":
            newest = checkpoint.newest_checkpoint(self.run_dir / "checkpoints")
            found, content = newest or (None, None)
        else:
            found = self.run_directory.find_checkpoint(wanted or "best")
        if found is None and wanted is None:
            found = self.run_directory.find_checkpoint("last")
            if found is not None:
                log.warning("%s has no best.ckpt; taking last.ckpt", found.parent)
        if found is None and self.subcommand == "fit":
            log.info("no checkpoint yet in %s: starting afresh", self.run_dir / "checkpoints")
        elif found is None and (options.model.weights is None or wanted is not None):
            raise RunError(
                f"no checkpoint in {self.run_dir / 'checkpoints'}. Train first, or give --ckpt_path or --run_dir."
            )
        if found is not None:
            content = content or checkpoint.read_checkpoint(found, resume=self.subcommand == "fit")
            self.about, self.global_step = dict(content[KEY]), int(content["global_step"])
            log.info("checkpoint: %s (step %d)", found, self.global_step)
            if self.subcommand == "fit":
                for line in checkpoint.environment_differences(self.about.get("environment") or {}):
                    log.warning("the run will not go on bit for bit: %s", line)
            if options.model.weights is not None:
                log.info("model.weights (%s) is not loaded: the checkpoint comes before it", options.model.weights)
        elif self.subcommand != "fit" and options.model.weights is not None:
            self.about = self._about_weights(options)
        options.ckpt_path = None if found is None else str(found)
        # A checkpoint from elsewhere begins a new run here: what lies here is not its past.
        self.resumes = found is not None and found.resolve().parent == (self.run_dir / "checkpoints").resolve()

    def _set_num_classes(self, options: Namespace) -> None:
        net = options.model.net.init_args
        names = self.prepared.classes or self.about.get("classes") or ()
        if names and "num_classes" in net and net.num_classes != len(names):
            log.info(
                "num_classes: %d, from the %s", len(names), "data" if self.prepared.classes else "checkpoint or weights"
            )
            net.num_classes = len(names)

    def instantiate_classes(self) -> None:
        """Build net, data and trainer; a setting that one of them refuses is the user's to mend."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the run directory's loggers, callbacks and checkpoint format."""
        self.datamodule.manifests = self.prepared.manifests
        options, trainer = self.options, built(self, "trainer")
        self._load_weights(options)
        writer = EvaluationWriter(self.run_dir, made_with=self._scores_follow_from, requeue=slurm.requeue)
        same = SameData(self.prepared.manifests, run_dir=self.run_dir, step=self.global_step)
        callbacks: list[Any] = [self.rank_log, same, writer]
        if self.subcommand == "fit":
            averaging = built(self, "averaging").build()
            # In this order: precise statistics are those of the averaged weights.
            callbacks += [averaging] if averaging is not None else []
            callbacks += [built(self, name) for name in ("precise_bn", "guard")]
            callbacks.append(MetricsCSV(self.run_dir / "metrics.csv"))
            paths = (record.path for record in self.datamodule.manifests["train"].records)
            table = self.run_dir / "failures.csv"
            callbacks.append(BrokenVideos(self.datamodule.max_broken_fraction, paths, table=table))
        text = subcommand_parser(self).dump(options, skip_none=False, skip_link_targets=False)
        callbacks.append(SaveConfig(self.run_dir, text, stage=str(self.subcommand), resumes=self.resumes))
        built(self, "checkpoint").resumes = self.resumes
        check_trainer(trainer)
        if trainer.enable_progress_bar is not False and sys.stderr.isatty():
            callbacks.append(TerminalProgress())
        else:
            callbacks.append(LineProgress())
            trainer.enable_progress_bar = False
        self.callbacks = callbacks
        trainer.callbacks = [*(trainer.callbacks or []), *callbacks]
        trainer.plugins = [*_as_list(trainer.plugins), AtomicCheckpointIO()]
        trainer.default_root_dir = str(self.run_dir)
        if trainer.logger is None or trainer.logger is True:
            trainer.logger = False
            if self.subcommand == "fit":
                trainer.logger = TensorBoardLogger(
                    self.run_dir, name="", version="tensorboard", purge_step=self.global_step or None
                )
        ddp = built(self, "ddp")
        # What Lightning takes by itself for several processes.
        StrategyRegistry.register("ddp", SteadyDDP, override=True, start_method="popen", compression=ddp.compression)
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        ddp.check(trainer.strategy)
        keep_signal_handlers(trainer)
        num_batches = options.precise_bn.num_batches if self.subcommand == "fit" else 0
        check_sharding(trainer, precise_bn_batches=num_batches, compiles=options.model.compile)
        if self.subcommand == "fit":
            cast(Any, trainer).callbacks.append(Preemption(self.flag, built(self, "checkpoint"), requeue=slurm.requeue))
        return trainer

    def _scores_follow_from(self) -> dict[str, Any]:
        """What a test's scores are a function of, beside its videos."""
        config = yaml.safe_load(subcommand_parser(self).dump(self.options, skip_none=False, skip_link_targets=False))
        # How fast the videos are read changes none of them.
        data = {k: v for k, v in config["data"].items() if k not in ("loader", "batch_size", "val_batch_size")}
        source = self.options.ckpt_path or find_weights(self.options.model.weights)
        return {
            "checkpoint": f"SHA-256 {file_digest(Path(source))}",
            "precision": config["trainer"]["precision"],
            "model": config["model"],
            "data": data,
        }

    def _about_weights(self, options: Namespace) -> dict[str, Any]:
        """The classes of weights that are tested without any training."""
        log.info("no checkpoint in %s: taking %s as it is", self.run_dir / "checkpoints", options.model.weights)
        try:
            content = read_file(find_weights(options.model.weights), header_only=True)
            source = recognize(content, format=options.model.weights_options.format)
        except CheckpointError as error:
            raise CheckpointError(f"no checkpoint in {self.run_dir / 'checkpoints'}, and {error}") from error
        return {"classes": list(source.classes or zoo_labels(source))}

    def _load_weights(self, options: Namespace) -> None:
        """Weights to start from, where no checkpoint comes; the config then tells the mean and std that they bring."""
        self.load_report = None
        mean, std = (_rounded(self.about.get(name)) for name in ("mean", "std"))
        if options.ckpt_path is None:
            report = self.load_report = self.model.load_weights(classes=self.prepared.classes)
            mean, std = (_rounded(buffer.tolist()) for buffer in (self.model.mean, self.model.std))
            fresh = [] if report is None else [n for n in report.left if not n.endswith("num_batches_tracked")]
            if self.subcommand != "fit" and fresh:
                raise RunError(
                    f"no checkpoint in {self.run_dir / 'checkpoints'}, and {options.model.weights} leaves {len(fresh)} "
                    f"tensors at their initial values ({fresh[0]}, ...). Train first, or give --ckpt_path or --run_dir."
                )
        # A checkpoint brings its classes when Lightning restores it.
        self.model.classes = list(self.about.get("classes") or ())
        options.model.mean = options.model.mean or mean
        options.model.std = options.model.std or std

    # ---- before and after Lightning's own ----------------------------------------------------

    def before_fit(self) -> None:
        """Hold the directory; set an earlier training aside, unless this one goes on with it."""
        if self.options.ckpt_path is None:
            self.model.check_training(self.trainer, self.datamodule)
        if not self.trainer.is_global_zero:
            return
        self.run_directory.lock(".lock")
        has_checkpoint = (self.run_dir / "checkpoints" / "last.ckpt").is_file()
        nothing_yet = self.asked == "last" and self.options.ckpt_path is None and not has_checkpoint
        if not self.resumes and not nothing_yet:
            self.moved = self.run_directory.set_aside()
            if self.moved is not None:
                log.info("an earlier run of %s now lies in %s", self.run_dir, self.moved)
        if self.load_report is not None:
            self.load_report.write(self.run_dir / "weights.json")
        parameters = sum(p.numel() for p in self.model.net.parameters())
        net = self.model.net.arguments
        manifests = self.datamodule.manifests
        log.info(
            "ResNet-%d I3D, %s norm, layout %s, %.2f M parameters; %d training and %d validation videos of %d classes",
            net["depth"], net["norm"], net["layout"], parameters / 1e6,
            len(manifests["train"].records), len(manifests["val"].records), len(self.datamodule.classes),
        )  # fmt: skip

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with naming_full_disk(self.run_dir):  # loggers write there too
                super()._run_subcommand(subcommand)
        except (ConfigError, CheckpointError, ManifestError):
            if self.moved is not None:
                self.run_directory.put_back(self.moved)
                log.info("nothing was trained: the earlier run of %s is back in its place", self.run_dir)
            raise

    def after_fit(self) -> None:
        """Say where things lie."""
        if self.trainer.is_global_zero:
            write_report(self.run_dir)
            log.info("run directory: %s", self.run_dir)

    def before_test(self) -> None:
        """Hold the directory's test."""
        if self.trainer.is_global_zero:
            self.run_directory.lock("test/.lock")

    def after_test(self) -> None:
        """Write the report with the test's figures."""
        if self.trainer.is_global_zero:
            write_report(self.run_dir)
            log.info("results: %s", self.run_dir / "test" / "metrics.json")

    def after_predict(self) -> None:
        """Say where the labels lie."""
        if self.trainer.is_global_zero:
            log.info("results: %s", self.run_dir / "predict" / "predictions.json")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    """As they were written, not as float32 has them."""
    return None if values is None else [round(v, 6) for v in values]


def config_parser(prog: str | None = None) -> LightningArgumentParser:
    """A parser of a fit's config and options, for who reads them without a run.

    Args:
        prog: Name of the program, for its messages.
    """
    parser = LightningArgumentParser(prog=prog)
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--seed_everything", type=int, default=0)
    _add_run_arguments(parser)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_lightning_class_args(VideoClassifier, "model")
    parser.add_lightning_class_args(VideoDataModule, "data")
    return parser


def _add_run_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of a run beside model, data and trainer."""
    parser.add_argument(
        "--run_dir", type=str | None, default=None, help="Directory of the run (default: runs/<the config's stem>)."
    )
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    parser.add_class_arguments(AveragingConfig, "averaging")
    parser.add_class_arguments(PreciseBN, "precise_bn")
    parser.add_class_arguments(NonFiniteGuard, "guard")
    parser.add_class_arguments(DDPConfig, "ddp")


def main(command: str, words: Sequence[str]) -> int:
    """Run fit, validate, test or predict; see `video_gn.__main__`.

    Args:
        command: "fit", "validate", "test" or "predict".
        words: Its options.

    Returns:
        0, or 3 if videos could not be read in a test or prediction.
    """
    set_up_logging()
    with slurm.refusals_noted(), launch.leaving_group():
        return _run(command, words)


def _run(command: str, words: Sequence[str]) -> int:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The words are ours to pass; sys.argv holds them too when we are the console script.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # torch's word to Lightning 2.6
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
    # Every process logs the same value, computed from what all have seen.
    warnings.filterwarnings("ignore", message=".*It is recommended to use `self.log.*sync_dist=True.*")
    # Our sampler goes on inside an epoch where the checkpoint stood; Lightning cannot know.
    warnings.filterwarnings("ignore", message=".*ended before the epoch ended and your dataloader is not resumable.*")
    VideoCLI.rank_log = RankLog(launch.launched_rank())
    with VideoCLI.flag.installed(), VideoCLI.rank_log.installed(), launch.ending_with_parent():
        try:
            cli = VideoCLI(
                command,
                save_config_callback=None,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={command: {"usage": _USAGE.format(command)}},
                args=[command, *words],
            )
        except RuntimeError as error:
            # torch raises it wherever the main thread is when a worker dies.
            told = explain(error)
            if told is None:
                raise
            raise told from error
    writers = [c for c in cli.callbacks if isinstance(c, EvaluationWriter)]
    return 3 if any(w.num_failed for w in writers) else 0
