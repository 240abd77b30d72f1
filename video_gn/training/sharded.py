"""Sharded training (FSDP2): each process holds a part of the weights, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from video_gn.errors import ConfigError
from video_gn.run.lightning_internals import callbacks_of, set_data_parallel_size


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy over all processes, with the checkpoints of unsharded training.

    A training step gathers one residual block's weights at a time and frees them again. In evaluation every process
    holds all weights: processes may have different numbers of batches there, so none may wait for another.

    A checkpoint is one file, written by rank 0: whole tensors under the names and in the order of unsharded training,
    so that either resumes from the other's. While it is written, rank 0 holds the whole state on its host.

    Args:
        process_group_backend: Backend of torch.distributed; None takes nccl on GPUs and gloo on CPUs.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        """Let all processes share the weights; Lightning's "auto" would be one group a node."""
        set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()

    def shard(self, net: nn.Module) -> None:
        """Shard a net's parameters, the same in each process, in units of a residual block, and the rest as one."""
        if isinstance(net, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        # FSDP requires this memory format of parameters; activations keep theirs.
        net.to(memory_format=torch.contiguous_format)
        for module in net.modules():
            if isinstance(module, nn.ModuleList):
                continue
            for block in (*getattr(module, "res_blocks", ()), *getattr(module, "nonlocal_blocks", {}).values()):
                fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)

    # ---- evaluation --------------------------------------------------------------------------

    def _sharded(self) -> Iterator[FSDPModule]:
        assert self.lightning_module is not None
        return (module for module in self.lightning_module.modules() if isinstance(module, FSDPModule))

    def _hold_all(self) -> None:
        # Tensors of Lightning's inference mode could not be used in training, whose buffers these are.
        with torch.inference_mode(False):
            for module in self._sharded():
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()

    def _release(self) -> None:
        for module in self._sharded():
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()

    on_validation_start = on_test_start = on_predict_start = _hold_all
    on_validation_end = on_test_end = on_predict_end = _release

    # ---- checkpoints -------------------------------------------------------------------------

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Restore before setup, as other strategies do: the data module must know its position before its loader."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning restore it, by `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on rank 0's host, and nothing on the others."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `lightning_module_state_dict`."""
        return self._whole(Strategy.optimizer_state(self, optimizer))

    def _whole(self, state: Any) -> Any:
        """Gather the whole tensors; all processes call it, in the order of the state, which is the same in all."""
        if isinstance(state, DTensor):
            full = state.full_tensor()
            return full.cpu() if self.is_global_zero else None
        if isinstance(state, dict):
            found = {key: self._whole(value) for key, value in state.items()}
            return found if self.is_global_zero else {}
        if isinstance(state, list):
            return [self._whole(value) for value in state]
        return state.cpu() if isinstance(state, torch.Tensor) else state

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file, in each process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's part of each tensor."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        whole = checkpoint["state_dict"]
        parts = {name: _part(value, own[name]) if name in own else value for name, value in whole.items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of each tensor that is shaped like its parameter."""
        for optimizer, whole in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in whole["param_groups"] for number in group["params"]]
            parameter_of = dict(zip(numbers, parameters, strict=True))
            state = {
                number: {name: _part(value, parameter_of[number]) for name, value in values.items()}
                for number, values in whole["state"].items()
            }
            optimizer.load_state_dict({**whole, "state": state})


StrategyRegistry.register("sharded", ShardedStrategy, description="FSDP2 over all processes")


def _part(value: Any, like: torch.Tensor) -> Any:
    """This process's part of a whole tensor. Each process has the whole, so nothing is sent."""
    if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    whole = value.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def check_sharding(trainer: Trainer, *, precise_bn_batches: int, compiles: bool) -> None:
    """Raise ConfigError for what a sharded net has not: `precise_bn.num_batches`, `model.compile`, averaging."""
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, ShardedStrategy):
        raise ConfigError(
            "trainer.strategy must be sharded for a sharded net, got "
            f"{type(strategy).__name__}: its checkpoints would be directories of parts."
        )
    if not isinstance(strategy, ShardedStrategy):
        return
    refused = {
        "averaging.kind must be none": any(isinstance(callback, WeightAveraging) for callback in callbacks_of(trainer)),
        "precise_bn.num_batches must be 0": precise_bn_batches > 0,
        "model.compile must be false": compiles,
    }
    for rule, is_broken in refused.items():
        if is_broken:
            raise ConfigError(
                f"{rule} with the sharded strategy: no process holds all of the weights. Set it so, or train with "
                "trainer.strategy=ddp."
            )
