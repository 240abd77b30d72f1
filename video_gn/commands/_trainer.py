"""Settings of Lightning's trainer: defaults of a run, and values that it refuses."""

from __future__ import annotations

from jsonargparse import Namespace

from video_gn.errors import ConfigError

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # it pads, so that videos would be counted twice
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}
# Half precision of the weights themselves would also convert the uint8 frames; autocast does not.
_PRECISIONS = ("32-true", "32", "bf16-mixed", "16-mixed")


def check_trainer(trainer: Namespace) -> None:
    """Refuse settings that a run cannot honour, before it touches anything."""
    precision = str(trainer.precision or "32-true")
    if precision not in _PRECISIONS:
        raise ConfigError(f"trainer.precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}. Choose one.")
    if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
        raise ConfigError(f"trainer.log_every_n_steps must be at least 1, got {trainer.log_every_n_steps}. Set 1.")
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ConfigError("trainer.max_epochs and max_steps are both -1. Set one: the schedule needs an end.")
    if trainer.max_epochs not in (None, -1) and trainer.max_steps != -1:
        raise ConfigError(
            f"trainer.max_epochs ({trainer.max_epochs}) and trainer.max_steps ({trainer.max_steps}) are both given. "
            "One of them must end the schedule: set the other to -1."
        )
    interval, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
    if isinstance(interval, int) and interval % accumulate:
        raise ConfigError(
            f"trainer.val_check_interval must be a multiple of accumulate_grad_batches ({accumulate}), got {interval}. "
            "Set a multiple: a run cannot resume from inside an optimizer step."
        )
