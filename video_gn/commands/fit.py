"""`video-gn fit`, `validate`, `test` and `predict`: LightningCLI with a run directory. Read from top to bottom: what
the options (`_settings.py`, `_run_settings.py`) are made into, and what happens before and after Lightning's loops.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry

from video_gn.commands._run_settings import Start, find_start, log_differences, settle_lists, with_run_config
from video_gn.commands._settings import SettingsParser, add_run_arguments, check_seed
from video_gn.commands._terminal import (
    print_figures,
    quieten_lightning,
    set_up_logging,
    test_figures,
    validation_figures,
)
from video_gn.commands._trainer import (
    TRAINER_DEFAULTS,
    as_list,
    check_built,
    check_trainer,
    last_line,
    progress,
    refusals_in_a_line,
)
from video_gn.commands.run_help import ABOUT, USAGE
from video_gn.damage import read_settings
from video_gn.data.datamodule import VideoDataModule, build_datamodule
from video_gn.data.loader import explain
from video_gn.errors import ConfigError, RunError
from video_gn.evaluation.writer import EvaluationWriter
from video_gn.files import naming_full_disk
from video_gn.models import warn_of_slow_bfloat16
from video_gn.run import directory, slurm, torchrun
from video_gn.run.broken_videos import BrokenVideos
from video_gn.run.checkpoints import AtomicCheckpointIO
from video_gn.run.lightning_internals import built, keep_signal_handlers, name_restore_errors, subcommand_parser
from video_gn.run.memory import keep_freed_memory
from video_gn.run.metrics_csv import MetricsCSV
from video_gn.run.preemption import Preemption
from video_gn.run.progress import RunLength
from video_gn.run.ranks import RankLog, SameData
from video_gn.run.saved_config import SaveConfig
from video_gn.run.signals import StopFlag
from video_gn.shown import count
from video_gn.training.ddp import SteadyDDP
from video_gn.training.module import VideoClassifier
from video_gn.training.sharded import check_sharding
from video_gn.training.trackers import build_logger, trackers
from video_gn.weights.named import file_digest, find_weights

if TYPE_CHECKING:
    from video_gn.weights.report import LoadReport

log = logging.getLogger(__name__)


def main(command: str, words: Sequence[str]) -> int:
    """Run fit, validate, test or predict; see `video_gn.__main__`. Returns 3 if a test could not read some videos."""
    set_up_logging()
    quieten_lightning()
    flag, rank_log = StopFlag(), RankLog(torchrun.launched_rank())
    with (
        slurm.refusals_noted(),
        torchrun.leaving_group(),
        flag.installed(),
        rank_log.installed(),
        torchrun.ending_with_parent(),
        refusals_in_a_line(),
    ):
        try:
            cli = VideoCLI(command, words, flag=flag, rank_log=rank_log)
        except RuntimeError as error:
            # torch raises it wherever the main thread is when a worker dies, and in a collective when a rank does.
            explained = explain(error) or torchrun.lost_rank(error)
            if explained is None:
                raise
            raise explained from error
    return 3 if cli.writer.num_failed else 0


class VideoCLI(LightningCLI):
    """Adds the run directory, checkpoints that resume, and the network's class count from the data."""

    run_directory: directory.RunDirectory
    run_dir: Path
    writer: EvaluationWriter
    load_report: LoadReport | None = None

    def __init__(self, command: str, words: Sequence[str], *, flag: StopFlag, rank_log: RankLog) -> None:
        self.command = command
        self.given = with_run_config(command, words)
        self.flag = flag
        self.rank_log = rank_log
        self.wanted: str | None = None  # --ckpt_path as it was given
        self.start = Start()
        self.displaces = False  # an earlier training, until this one has saved a checkpoint
        self.refused: ConfigError | None = None  # by a logger
        self.trial_of: Path | None = None  # run directory that a trial leaves alone
        super().__init__(
            VideoClassifier,
            VideoDataModule,
            save_config_callback=None,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=SettingsParser,
            parser_kwargs={"prog": "video-gn", command: {"usage": USAGE[command], "description": ABOUT[command]}},
            args=[command, *("--help" if word == "--help_all" else word for word in self.given.words)],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is run: the parsers of all four cost a second of every start."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add --run_dir and what a run has beside model, data and trainer; one seed for everything."""
        add_run_arguments(parser)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=check_seed)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's hyper-parameters override the command line; ours holds none."""

    @property
    def options(self) -> Namespace:
        """The subcommand's resolved arguments."""
        return self.config[self.subcommand]

    # ---- before anything is built: directory, checkpoint, lists ------------------------------

    def before_instantiate_classes(self) -> None:
        """Find run directory and checkpoint, read the lists, and set what follows from them in the config."""
        options = self.options
        if self.given.is_implied:
            log.info("settings: %s, and the options that were given", self.given.config)
        self._settle_launch(options)
        configs = options.get("config") or []
        stem = Path(str(configs[0])).stem if configs else "default"
        self._set_run_dir(options, Path(options.run_dir or Path("runs") / stem))
        if torchrun.launched_rank() == 0:
            self.run_directory.settle_after_kill()
        self.wanted = options.ckpt_path
        if self.subcommand != "fit" or self.wanted is not None:
            weights_count = not self.given.is_implied
            self.start = find_start(self.command, options, self.run_directory, weights_count=weights_count)
            options.ckpt_path = None if self.start.path is None else str(self.start.path)
        if options.trainer.fast_dev_run:
            self.trial_of = self.run_dir
            self._set_run_dir(options, self.run_dir.with_name(f".trial-{self.run_dir.name}"))
            log.info("trainer.fast_dev_run: a trial, of which nothing is kept; %s is left alone", self.trial_of)
        settle_lists(self.command, self.given, options)
        self._read_data(options)
        log_differences(self.command, self.start, options, self.datamodule)
        self._set_num_classes(options)
        self.parser.add_instantiator(self._logger, Logger)

    def _logger(self, kind: type[Logger], **settings: Any) -> Logger:
        """A logger that the settings name; a training from the beginning is a new run of its tracker."""
        continues = self.command != "fit" or self.start.resumes or self.wanted == "last"
        try:
            return build_logger(kind, self.run_dir, step=self.start.step, continues=continues, settings=settings)
        except ConfigError as error:  # jsonargparse makes another of it, that lists all types of trainer.logger
            self.refused = error
            raise

    def _set_run_dir(self, options: Namespace, path: Path) -> None:
        self.run_dir, self.checkpoints = path, path / directory.CHECKPOINTS
        self.run_directory = directory.RunDirectory(path)
        options.run_dir, options.checkpoint.directory = str(path), str(self.checkpoints)

    def _settle_launch(self, options: Namespace) -> None:
        sizes = {"num_nodes": options.trainer.num_nodes, "devices": options.trainer.devices}
        if torchrun.from_torchrun():
            options.trainer.num_nodes, options.trainer.devices = torchrun.torchrun_sizes(**sizes)
        else:
            slurm.check_launch(**sizes, resolve=SLURMEnvironment.resolve_root_node_address)

    def _read_data(self, options: Namespace) -> None:
        """Build the data module, which Lightning then takes over, and read its lists."""
        source = options.data.source
        # With `only_classes` a list may hold others too; what is left is compared with the checkpoint's.
        open_classes = source.classes is None and not source.only_classes
        of_checkpoint = bool(self.subcommand != "fit" and open_classes and self.start.about.get("classes"))
        if of_checkpoint:
            source.classes = list(self.start.about["classes"])
        try:
            data = build_datamodule(options.data.as_dict())
        except (ValueError, TypeError) as error:
            raise ConfigError(f"data: {error}") from error
        data.read(self.subcommand, of_checkpoint=of_checkpoint)
        self.datamodule = data
        self.parser.add_instantiator(lambda _, **settings: data, VideoDataModule, subclasses=False)

    def _set_num_classes(self, options: Namespace) -> None:
        net = options.model.net.get("init_args") or {}
        names = self.datamodule.classes or self.start.about.get("classes") or ()
        if names and "num_classes" in net and net["num_classes"] != len(names):
            where = "data" if self.datamodule.classes else "checkpoint or weights"
            log.info("num_classes: %d, from the %s", len(names), where)
            net["num_classes"] = len(names)

    # ---- net, weights, trainer ---------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Build net and trainer; a setting that one of them refuses is an error of the config."""
        try:
            super().instantiate_classes()
        except Exception as error:
            if self.refused is not None:
                raise self.refused from error
            net = self.options.model.net.class_path
            if line := last_line(error, within=net.rpartition(".")[0]):
                raise ConfigError(f"model.net {net}, {line}: {type(error).__name__}: {error}") from error
            if isinstance(error, ValueError | TypeError):
                raise ConfigError(str(error)) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the run directory's loggers, callbacks and checkpoint format."""
        options, settings = self.options, built(self, "trainer")
        self._load_weights(options)
        callbacks = self._callbacks()
        check_trainer(settings)
        callbacks += progress(settings)
        settings.callbacks = [*as_list(settings.callbacks), *callbacks]
        settings.plugins = [*as_list(settings.plugins), AtomicCheckpointIO()]
        settings.default_root_dir = str(self.run_dir)
        if settings.logger in (None, True) or self.subcommand in ("validate", "predict"):
            settings.logger = False
            if self.subcommand == "fit":
                settings.logger = TensorBoardLogger(
                    self.run_dir, name="", version=directory.TENSORBOARD, purge_step=self.start.step or None
                )
        ddp = built(self, "ddp")
        # Lightning's own choice for several processes.
        StrategyRegistry.register("ddp", SteadyDDP, override=True, start_method="popen", compression=ddp.compression)
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if str(trainer.precision).startswith("bf16"):  # on a CPU also 16-mixed, which Lightning replaces
            warn_of_slow_bfloat16(trainer.strategy.root_device.type, advice="Set --trainer.precision 32-true.")
        ddp.check(trainer.strategy)
        keep_signal_handlers(trainer)
        name_restore_errors(trainer)
        num_batches = options.precise_bn.num_batches if self.subcommand == "fit" else 0
        check_sharding(trainer, precise_bn_batches=num_batches, compiles=options.model.compile)
        if self.subcommand == "fit":
            check_built(trainer, self.datamodule)
            # last: it stops a run once the run's checkpoint is saved
            checkpoint = built(self, "checkpoint")
            cast(Any, trainer).callbacks.append(Preemption(self.flag, checkpoint, requeue=slurm.requeue))
        return trainer

    def _load_weights(self, options: Namespace) -> None:
        """Load weights to start from, unless there is a checkpoint; set their mean and std in the config."""
        mean, std = (_rounded(self.start.about.get(name)) for name in ("mean", "std"))
        if options.ckpt_path is None:
            report = self.load_report = self.model.load_weights(classes=self.datamodule.classes)
            mean, std = (_rounded(buffer.tolist()) for buffer in (self.model.mean, self.model.std))
            fresh = [] if report is None else [n for n in report.left if not n.endswith("num_batches_tracked")]
            if self.subcommand != "fit" and fresh:
                raise RunError(
                    f"no checkpoint in {self.checkpoints}, and {options.model.weights} leaves {len(fresh)} "
                    f"tensors at their initial values ({fresh[0]}, ...). Train first, or give --ckpt_path or --run_dir."
                )
        # A checkpoint brings its classes when Lightning restores it.
        self.model.classes = list(self.start.about.get("classes") or ())
        options.model.mean = options.model.mean or mean
        options.model.std = options.model.std or std

    def _callbacks(self) -> list[Any]:
        manifests = self.datamodule.manifests
        same = SameData(manifests, run_dir=self.run_dir, step=self.start.step)
        self.writer = EvaluationWriter(self.run_dir, made_with=self._scores_follow_from, requeue=slurm.requeue)
        callbacks: list[Any] = [self.rank_log, same, self.writer]
        if self.subcommand == "fit":
            averaging = built(self, "averaging").build()
            # In this order: precise statistics are those of the averaged weights.
            callbacks += [averaging] if averaging is not None else []
            callbacks += [built(self, name) for name in ("precise_bn", "guard")]
            callbacks += [MetricsCSV(self.run_dir / directory.METRICS), RunLength()]
            paths = (record.path for record in manifests["train"].records)
            table = self.run_dir / directory.FAILURES
            callbacks.append(BrokenVideos(self.datamodule.max_broken_fraction, paths, table=table))
        resumes = built(self, "checkpoint").resumes = self.start.resumes
        callbacks.append(SaveConfig(self.run_dir, self._resolved(), stage=self.command, resumes=resumes))
        return callbacks

    def _resolved(self) -> str:
        """The resolved config, as yaml."""
        text: str = subcommand_parser(self).dump(self.options, skip_none=False, skip_link_targets=False)
        return text

    def _scores_follow_from(self) -> dict[str, Any]:
        """All that a test's scores depend on beside its videos."""
        config = yaml.safe_load(self._resolved())
        # How fast the videos are read changes no score.
        data = {k: v for k, v in config["data"].items() if k not in ("loader", "batch_size", "val_batch_size")}
        source = self.options.ckpt_path or find_weights(directory.checkpoint_of(self.options.model.weights))
        return {
            "checkpoint": f"SHA-256 {file_digest(Path(source))}",
            "precision": config["trainer"]["precision"],
            "model": config["model"],
            "data": data,
        }

    # ---- before and after Lightning's loops --------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with naming_full_disk(self.run_dir):  # loggers write there too
                super()._run_subcommand(subcommand)
        finally:
            if self.displaces:
                self.run_directory.settle()
            if self.trial_of is not None and self.trainer.is_global_zero:
                shutil.rmtree(self.run_dir, ignore_errors=True)

    def _begin_tracking(self) -> None:
        """Open the trackers' runs, with the config that the training began with."""
        loggers = trackers(self.trainer.loggers)
        if not loggers:
            return
        from video_gn.study.settings import flatten

        path = self.run_dir / directory.CONFIG  # not there yet in a new training
        config = read_settings(path) if path.is_file() else yaml.safe_load(self._resolved())
        for logger in loggers:
            logger.begin(self.run_dir, flatten(config), resumes=self.command == "fit")

    def before_fit(self) -> None:
        """Hold the directory; set an earlier training aside, unless this one resumes it."""
        if self.options.ckpt_path is None:
            self.model.check_training(self.trainer, self.datamodule)
        if not self.trainer.is_global_zero:
            return
        self._hold(directory.LOCK)
        has_checkpoint = (self.checkpoints / directory.LAST).is_file()
        nothing_yet = self.wanted == "last" and self.options.ckpt_path is None and not has_checkpoint
        if not self.start.resumes and not nothing_yet:
            self.displaces = True
            moved = self.run_directory.set_aside()
            if moved is not None:
                log.info("an earlier run of %s now lies in %s", self.run_dir, moved)
        if self.load_report is not None:
            self.load_report.write(self.run_dir / directory.WEIGHTS)
        self._begin_tracking()
        parameters = sum(p.numel() for p in self.model.net.parameters())
        manifests = self.datamodule.manifests
        classes = count(len(self.datamodule.classes), "class", "classes")
        log.info(
            "%s, %.2f M parameters; %d training and %d validation videos of %s",
            self.model.net.title, parameters / 1e6,
            len(manifests["train"].records), len(manifests["val"].records), classes,
        )  # fmt: skip

    def after_fit(self) -> None:
        """Write the report, and log where things lie."""
        if self.trainer.is_global_zero:
            self._write_report(directory.BEST)
            self._log_place("run directory", self.run_dir)

    def before_validate(self) -> None:
        """Leave it to `after_validate` to print the figures."""
        self.config_init[self.subcommand].verbose = False

    def after_validate(self) -> None:
        """Print the figures."""
        if self.trainer.is_global_zero and self.options.verbose:
            num_videos = len(self.datamodule.manifests["val"].records)
            metrics = self.trainer.callback_metrics
            print_figures(validation_figures(metrics, checkpoint=self.options.ckpt_path, num_videos=num_videos))

    def _hold(self, lock: str) -> None:
        self.run_directory.lock(lock)
        self.run_directory.set_strange_files_aside(self.command)

    def before_test(self) -> None:
        """Hold the directory's test."""
        self.config_init[self.subcommand].verbose = False
        if self.trainer.is_global_zero:
            self._hold(directory.TEST_LOCK)
            self._begin_tracking()

    def after_test(self) -> None:
        """Write the report with the test's figures, and print them."""
        if self.trainer.is_global_zero:
            path = self.run_dir / directory.TEST_METRICS
            metrics = json.loads(path.read_text(encoding="utf-8"))
            figures = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            for logger in trackers(self.trainer.loggers):
                logger.log_test(figures, self.start.step)
            self._write_report()
            if self.options.verbose:
                print_figures(test_figures(metrics))
            self._log_place("results", path)

    def _log_place(self, what: str, path: Path) -> None:
        if self.trial_of is None:
            log.info("%s: %s", what, path)
        else:
            log.info("the trial of %s has ended", self.trial_of)

    def _write_report(self, *also: str) -> None:
        """Write it, and give it to the trackers with the checkpoints `also`."""
        from video_gn.report import write_report  # not at a start: it takes a while to import

        write_report(self.run_dir)
        paths = [self.run_dir / directory.REPORT, *(self.checkpoints / name for name in also)]
        for logger in trackers(self.trainer.loggers):
            logger.log_files(filter(Path.is_file, paths))

    def before_predict(self) -> None:
        """Hold the directory's prediction."""
        if self.trainer.is_global_zero:
            self._hold(directory.PREDICT_LOCK)

    def after_predict(self) -> None:
        """Log where the labels lie."""
        if self.trainer.is_global_zero:
            self._log_place("results", self.run_dir / directory.PREDICT_RESULTS)


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    """Mean or std as they were written, not as float32 has them."""
    return None if values is None else [round(v, 6) for v in values]
