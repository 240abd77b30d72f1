"""Options of `fit`, `validate`, `test` and `predict`."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from video_gn.commands._settings import SettingsParser
from video_gn.data.datamodule import VideoDataModule
from video_gn.errors import ConfigError
from video_gn.run.checkpoints import RunCheckpoint
from video_gn.training.averaging import AveragingConfig
from video_gn.training.ddp import DDPConfig
from video_gn.training.guard import NonFiniteGuard
from video_gn.training.module import VideoClassifier
from video_gn.training.precise_bn import PreciseBN


def config_parser(prog: str | None = None, *, also: Sequence[str] = ()) -> SettingsParser:
    """A parser of a fit's config and options, to read them without a run; `also` as `SettingsParser` has it."""
    parser = SettingsParser(prog=prog, also=also)
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--seed_everything", type=int, default=0)
    add_run_arguments(parser)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_lightning_class_args(VideoClassifier, "model")
    parser.add_lightning_class_args(VideoDataModule, "data")
    parser.add_method_arguments(Trainer, "test", skip=set(LightningCLI.subcommands()["test"]))
    return parser


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of a run beside model, data and trainer."""
    parser.add_argument(
        "--run_dir", type=str | None, default=None, help="Directory of the run (default: runs/<the config's stem>)."
    )
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    parser.add_class_arguments(AveragingConfig, "averaging")
    parser.add_class_arguments(PreciseBN, "precise_bn")
    parser.add_class_arguments(NonFiniteGuard, "guard")
    parser.add_class_arguments(DDPConfig, "ddp")


def check_seed(value: bool | int) -> int:
    """A seed as an integer that every random number generator takes."""
    if not 0 <= value < 2**32:
        raise ConfigError(f"seed_everything must be in [0, 2**32), got {value}. The default is 0.")
    return int(value)
