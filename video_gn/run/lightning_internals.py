"""Private names of Lightning, one function each. No other file touches any, but for methods that a subclass overrides:
`LightningCLI._run_subcommand` and `_parse_ckpt_path`, `DDPStrategy._register_ddp_hooks`.

Written for Lightning 2.6; a test checks that the installed one has every name.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from video_gn.damage import in_words
from video_gn.errors import CheckpointError, VideoGNError

# ---- the trainer ---------------------------------------------------------------------------------


def callbacks_of(trainer: Any) -> list[Any]:
    """A trainer's callbacks: a public attribute that Lightning's types do not declare."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    return callbacks


def trainer_of(module: Any) -> Any:
    """A module's trainer; None without one, where `module.trainer` raises."""
    return module._trainer


def pads_samplers(trainer: Any) -> bool:
    """Whether Lightning puts its own sampler into loaders: its public setting is the argument of the trainer alone."""
    return bool(getattr(getattr(trainer, "_accelerator_connector", None), "use_distributed_sampler", False))


def raised_on_purpose(error: Exception) -> bool:
    """Whether Lightning itself refuses something: the innermost frame is its own, at a `raise`."""
    if isinstance(error, MisconfigurationException):
        return True
    kinds = (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError, ModuleNotFoundError)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    of_lightning = bool(frames) and frames[-1].f_globals.get("__name__", "").split(".")[0] == "lightning"
    line = traceback.extract_tb(error.__traceback__)[-1].line if of_lightning else None
    return isinstance(error, kinds) and (line or "").startswith("raise ")


def keep_signal_handlers(trainer: Any) -> None:
    """Stop Lightning from installing its own: they save or broadcast inside a handler, so that ranks at different steps
    wait for ever.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def name_restore_errors(trainer: Any) -> None:
    """Let whatever Lightning raises over what is in a checkpoint be a `CheckpointError` with its path."""
    connector = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, _naming_checkpoint(connector, getattr(connector, name)))


def _naming_checkpoint(connector: Any, restore: Callable[..., None]) -> Callable[..., None]:
    def named(*args: Any, **more: Any) -> None:
        try:
            restore(*args, **more)
        except torch.OutOfMemoryError:
            raise
        except CheckpointError as error:
            if str(connector._ckpt_path) in str(error):
                raise
            raise CheckpointError(f"{connector._ckpt_path}: {error}") from error
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError) as error:
            if isinstance(error, VideoGNError):
                raise
            path = connector._ckpt_path
            raise CheckpointError(
                f"{path}: cannot be restored ({in_words(error)}). Take another checkpoint, or the settings that it was "
                f"trained with; a new run may start from its weights (--model.weights {path})."
            ) from error

    return named


# ---- the training loop ---------------------------------------------------------------------------


def is_within_window(trainer: Any) -> bool:
    """Whether the batch that has just ended is accumulated only: its optimizer step is still to come."""
    return bool(trainer.fit_loop._should_accumulate())


def validates_next(trainer: Any) -> bool:
    """Whether a validation comes right after the batch that has just ended."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def log_batch(trainer: Any) -> None:
    """Give the batch's figures to the loggers, as Lightning does once all callbacks have seen the batch's end."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()


def epoch_is_over(trainer: Any) -> bool:
    """Whether the batch that has just ended is the epoch's last."""
    loop = trainer.fit_loop.epoch_loop
    return bool(loop.batch_progress.current.ready >= trainer.num_training_batches or loop._is_training_done)


def validates_by_time(trainer: Any) -> bool:
    """Whether validations come after some time, not after some batches."""
    return getattr(trainer, "_val_check_time_interval", None) is not None


def begin_epoch_anew(trainer: Any) -> None:
    """Let the loops take the next epoch like any other, after a checkpoint that lies between two."""
    loop = trainer.fit_loop
    for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop, loop.epoch_loop.automatic_optimization):
        part._restarting = False  # the setter of the fit loop leaves it True where max_steps ends a training


def write_progress(state: dict[str, Any], *, epoch: int, batches: int, step: int) -> None:
    """Write the fit loop's state as it is between two epochs, or between two batches of one.

    `epoch` epochs are done and `batches` of the next; `step` is the global step. The total of processed batches stays.
    """
    for scope in ("total", "current"):
        started = epoch + (batches > 0)
        state["epoch_progress"][scope].update(ready=started, started=started, processed=epoch, completed=epoch)
    progress = state["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False
    # With `completed` one behind, Lightning takes a checkpoint as one of a training batch's end.
    progress["current"].update(ready=batches, started=batches, processed=batches, completed=max(0, batches - 1))
    total = progress["total"]["processed"]
    progress["total"].update(ready=total, started=total, completed=total - (batches > 0))
    # Lightning adds the step under way on resuming inside an epoch, and not between epochs.
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step - (batches > 0)


# ---- averaged weights ----------------------------------------------------------------------------


def average_of(averaging: Any) -> Any:
    """The averaged model of a `WeightAveraging` callback, None before its `setup`."""
    return averaging._average_model


# ---- strategies ----------------------------------------------------------------------------------


def start_method(strategy: Any) -> str:
    """How a strategy starts its processes: "popen", or as multiprocessing does, such as "spawn"."""
    return str(getattr(strategy, "_start_method", "popen"))


def set_data_parallel_size(strategy: Any, size: int) -> None:
    """Number of ranks that share a `ModelParallelStrategy`'s weights; its constructor does not know it yet."""
    strategy._data_parallel_size = size


# ---- the command line ----------------------------------------------------------------------------


def subcommand_parser(cli: Any) -> Any:
    """The parser of a `LightningCLI`'s subcommand."""
    return cli._parser(cli.subcommand)


def built(cli: Any, key: str) -> Any:
    """What a `LightningCLI` has built from a key of its subcommand's config."""
    return cli._get(cli.config_init, key)
