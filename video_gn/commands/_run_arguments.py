"""The options of a run beside model, data and trainer; and the data of a config alone."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from video_gn.data.datamodule import VideoDataModule, build_datamodule
from video_gn.errors import ConfigError
from video_gn.run.checkpoints import RunCheckpoint
from video_gn.training.averaging import AveragingConfig
from video_gn.training.ddp import DDPConfig
from video_gn.training.guard import NonFiniteGuard
from video_gn.training.module import VideoClassifier
from video_gn.training.precise_bn import PreciseBN


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of a run beside model, data and trainer.

    Args:
        parser: that a config is read with.
    """
    parser.add_argument(
        "--run_dir", type=str | None, default=None, help="Directory of the run (default: runs/<the config's stem>)."
    )
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    parser.add_class_arguments(AveragingConfig, "averaging")
    parser.add_class_arguments(PreciseBN, "precise_bn")
    parser.add_class_arguments(NonFiniteGuard, "guard")
    parser.add_class_arguments(DDPConfig, "ddp")


def read_data(config: str, settings: Sequence[str]) -> VideoDataModule:
    """The data module of a config, with its lists read.

    Args:
        config: its path.
        settings: further words, as of fit.

    Raises:
        ConfigError: for settings that do not fit together.
    """
    parser = LightningArgumentParser(prog="video-gn data show")
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--seed_everything", type=int, default=0)
    add_run_arguments(parser)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_lightning_class_args(VideoClassifier, "model")
    parser.add_lightning_class_args(VideoDataModule, "data")
    options = parser.parse_args(["-c", config, *settings])
    try:
        datamodule = build_datamodule({**options.data.as_dict(), "seed": options.seed_everything})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"data: {error}") from error
    datamodule.read()
    return datamodule
