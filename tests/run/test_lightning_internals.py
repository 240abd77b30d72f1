"""The private names of Lightning that the package uses are there, and one file alone uses them."""

import ast
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

import video_gn
from video_gn.errors import CheckpointError
from video_gn.run import lightning_internals as internals

PACKAGE = Path(video_gn.__file__).parent


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        found = (internals.is_within_window, internals.validates_next, internals.epoch_is_over)
        self.seen.append(found)
        return self.layer(batch).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen[-1] = [function(self.trainer) for function in self.seen[-1]]

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


@pytest.fixture
def trainer():
    return Trainer(**QUIET, enable_progress_bar=False, max_epochs=1, accumulate_grad_batches=2, val_check_interval=2)


@pytest.fixture
def loader():
    return torch.utils.data.DataLoader(torch.ones(5, 1))


def test_where_a_training_stands(trainer, loader):
    net = Net()
    trainer.fit(net, loader, loader)
    assert net.seen == [  # within a window of two batches, before a validation, at the epoch's end
        [True, False, False],
        [False, True, False],
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_the_setters_set_names_that_are_there(trainer, tmp_path):
    before = set(vars(trainer._signal_connector)) | set(dir(trainer._signal_connector))
    internals.keep_signal_handlers(trainer)
    assert trainer._signal_connector.register_signal_handlers() is None
    assert "register_signal_handlers" in before
    loop = trainer.fit_loop
    parts = (loop, loop.epoch_loop, loop.epoch_loop.val_loop, loop.epoch_loop.automatic_optimization)
    for part in parts:
        part._restarting = True
        assert part.restarting
    internals.begin_epoch_anew(trainer)
    assert not any(part.restarting for part in parts)
    strategy = ModelParallelStrategy()
    assert strategy._data_parallel_size == "auto"
    internals.set_data_parallel_size(strategy, 2)
    assert strategy._data_parallel_size == 2


def test_what_cannot_be_restored_is_named(trainer, loader, tmp_path):
    path = tmp_path / "a.ckpt"
    trainer.fit(Net(), loader, loader)
    trainer.save_checkpoint(path)
    whole = torch.load(path, weights_only=True)
    for change in (
        {"loops": {"fit_loop": 5}},
        {"state_dict": {"layer.weight": 1}},
        {"optimizer_states": [{}]},
        {"lr_schedulers": None},
    ):
        torch.save({**whole, **change}, path)
        again = Trainer(**QUIET, enable_progress_bar=False, max_epochs=2)
        internals.name_restore_errors(again)
        with pytest.raises(CheckpointError, match=r"a\.ckpt: cannot be restored \(\w+: "):
            again.fit(Net(), loader, loader, ckpt_path=path)
    for error in (CheckpointError("it is another's"), CheckpointError(f"{path} is another's")):
        connector = SimpleNamespace(
            _ckpt_path=path, _restore_modules_and_callbacks=Mock(side_effect=error), restore_training_state=None
        )
        internals.name_restore_errors(SimpleNamespace(_checkpoint_connector=connector))
        with pytest.raises(CheckpointError, match=rf"^{path}:? (it )?is another's$"):
            connector._restore_modules_and_callbacks()


def test_what_is_asked_of_a_trainer():
    trainer = Trainer(**QUIET, max_epochs=1, val_check_interval="00:00:10:00", check_val_every_n_epoch=None)
    assert hasattr(trainer, "_val_check_time_interval") and internals.validates_by_time(trainer)
    assert hasattr(trainer, "_accelerator_connector") and internals.pads_samplers(trainer)
    trainer = Trainer(**QUIET, max_epochs=1, use_distributed_sampler=False)
    assert not internals.validates_by_time(trainer) and not internals.pads_samplers(trainer)
    net = Net()
    assert internals.trainer_of(net) is None
    net.trainer = trainer
    assert internals.trainer_of(net) is trainer
    assert internals.callbacks_of(trainer) is trainer.callbacks
    assert internals.callbacks_of(object()) == []


def test_what_lightning_refuses_on_purpose():
    def raised(call):
        with pytest.raises((ValueError, TypeError, MisconfigurationException)) as caught:
            call()
        return internals.raised_on_purpose(caught.value)

    assert raised(lambda: Trainer(**{**QUIET, "accelerator": "bogus"}))  # a ValueError
    assert raised(lambda: Trainer(**QUIET, max_epochs=-2))
    assert not raised(lambda: Trainer(**QUIET, overfit_batches="two")), "a comparison that fails inside Lightning"
    assert not raised(lambda: int("two"))


def test_how_a_strategy_starts_its_processes():
    assert internals.start_method(DDPStrategy(start_method="spawn")) == "spawn"
    assert internals.start_method(DDPStrategy()) == internals.start_method(object()) == "popen"


def test_the_average(trainer):
    averaging, net = WeightAveraging(), Net()
    assert internals.average_of(averaging) is None
    averaging.setup(trainer, net, "fit")
    assert isinstance(internals.average_of(averaging).module, Net)


def test_the_loops_state_has_what_is_written(trainer, loader, tmp_path):
    trainer.fit(Net(), loader, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert "_batches_that_stepped" in state["epoch_loop.state_dict"]
    keys = {name: set(part) for name, part in state.items() if isinstance(part, dict)}
    internals.write_progress(state, epoch=0, batches=3, step=2)
    assert {name: set(part) for name, part in state.items() if isinstance(part, dict)} == keys
    assert state["epoch_loop.batch_progress"]["current"] == {
        "ready": 3,
        "started": 3,
        "processed": 3,
        "completed": 2,
    }


def test_what_a_subclass_overrides_is_there():
    for kind, names in (
        (LightningCLI, ("_run_subcommand", "_parse_ckpt_path", "_parser", "_get")),
        (DDPStrategy, ("_register_ddp_hooks",)),
    ):
        assert all(callable(getattr(kind, name, None)) for name in names)


def private_attributes(path):
    found = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute))
    return {node.attr for node in found if node.attr.startswith("_") and not node.attr.startswith("__")}


def test_no_other_file_touches_them():
    here = PACKAGE / "run" / "lightning_internals.py"
    names = private_attributes(here)
    assert len(names) > 8
    for path in PACKAGE.rglob("*.py"):
        if path != here and "lightning" in path.read_text():
            assert not names & private_attributes(path), path
