"""Training on several processes: torch's DistributedDataParallel, set up so that a run that goes on is the same run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from video_gn.errors import ConfigError

_COMPRESSIONS = ("none", "bf16")
# Those of torch that add up bfloat16.
_BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True)
class DDPConfig:
    """How several processes share their gradients.

    Args:
        compression: "none" sends gradients as they are; "bf16" sends half of the bytes: each process's gradients are
            rounded to bfloat16, and so is their mean.

    Raises:
        ValueError: for an unknown name.
    """

    compression: Literal["none", "bf16"] = "none"

    def __post_init__(self) -> None:
        if self.compression not in _COMPRESSIONS:
            raise ValueError(f"ddp.compression must be one of {', '.join(_COMPRESSIONS)}, got {self.compression!r}.")

    def check(self, strategy: Any) -> None:
        """Refuse what the trainer's strategy does not do.

        Raises:
            ConfigError: it says what to write.
        """
        if self.compression != "none" and not isinstance(strategy, SteadyDDP):
            raise ConfigError(
                f"ddp.compression must be none unless several processes share their gradients, got "
                f"{self.compression!r} with {type(strategy).__name__}. Set it to none, or trainer.devices to 2 or more "
                "and trainer.strategy to auto."
            )


class SteadyDDP(DDPStrategy):
    """Lightning's DDP with gradients that live in their buckets, and with the same buckets from the first step on.

    DDP lays its buckets out anew after the first backward pass. Gloo and NCCL add the parts of a bucket up in an order
    that depends on the place, so with three processes or more a run that goes on from a checkpoint would round its
    first step otherwise than one that never stopped. Here backward passes of zeros come before the first step.

    Args:
        compression: see `DDPConfig`.
        **kwargs: of DDPStrategy. `gradient_as_bucket_view` and `static_graph` are on unless told otherwise: a network
            runs the same modules at each step.
    """

    def __init__(self, *args: Any, compression: str = "none", **kwargs: Any) -> None:
        kwargs.setdefault("gradient_as_bucket_view", True)
        kwargs.setdefault("static_graph", not kwargs.get("find_unused_parameters", False))
        super().__init__(*args, **kwargs)
        self.compression = compression

    def configure_ddp(self) -> None:
        """Wrap the module, and settle the buckets."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        keep_strides(parameters)
        _settle_buckets(self.model, parameters, self.root_device)

    def _register_ddp_hooks(self) -> None:
        if self.compression == "none":
            super()._register_ddp_hooks()
            return
        # Lightning leaves hooks out on CPUs; gloo takes this one.
        backend = distributed.get_backend()
        if backend not in _BACKENDS:
            raise ConfigError(
                f"ddp.compression must be none unless processes talk through {' or '.join(_BACKENDS)}, got "
                f"{self.compression!r} with {backend}."
            )
        assert isinstance(self.model, DistributedDataParallel)
        # Without its name: by that torch refuses the hook wherever it was built without NCCL, gloo or not.
        self.model.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))


def keep_strides(parameters: Iterable[nn.Parameter]) -> None:
    """Let gradients have their parameter's strides to the letter.

    The stride of a dimension of size 1 means nothing. A 1x1x1 weight in channels_last_3d has C there, and convolutions
    on a CPU return 1. DDP compares to the letter, and warns of slow copies. The hook makes a view.

    Args:
        parameters: of the net.
    """

    def as_parameter(parameter: nn.Parameter) -> Any:
        shape, strides = parameter.shape, parameter.stride()

        def hook(gradient: torch.Tensor) -> torch.Tensor:
            told = gradient.stride()
            same = all(a == b or size == 1 for size, a, b in zip(shape, told, strides, strict=True))
            return gradient.as_strided(shape, strides) if same and told != strides else gradient

        return hook

    for parameter in parameters:
        if 1 in parameter.shape:
            parameter.register_hook(as_parameter(parameter))


def _settle_buckets(model: DistributedDataParallel, parameters: list[nn.Parameter], device: torch.device) -> None:
    """Backward passes of zeros, until DDP has seen an order; afterwards no parameter has a gradient."""
    module = model.module

    def zeros(anything: torch.Tensor) -> torch.Tensor:
        total = anything
        for parameter in parameters:
            total = total + 0 * parameter.sum()
        return total

    forward = module.forward
    module.forward = zeros
    try:
        for _ in range(2 if model.static_graph else 1):  # a static graph is only looked at in the first pass
            # The engine goes back from what came last, as through the net.
            model(torch.zeros((), device=device)).backward()
            for parameter in parameters:
                parameter.grad = None
    finally:
        module.forward = forward
