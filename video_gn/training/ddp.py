"""Training on several processes: DistributedDataParallel, set up so that a resumed run is bit-identical."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from video_gn.checks import check_choice
from video_gn.errors import ConfigError

# Backends that can sum bfloat16.
_BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True)
class DDPConfig:
    """How several processes share their gradients.

    Args:
        compression: "none" sends gradients in full; "bf16" halves the bytes by rounding each process's gradients, and
            their mean, to bfloat16.
    """

    compression: Literal["none", "bf16"] = "none"

    def __post_init__(self) -> None:
        check_choice("ddp.compression", self.compression, ("none", "bf16"))

    def check(self, strategy: Any) -> None:
        """Raise ConfigError for a compression that the trainer's strategy does not have."""
        if self.compression != "none" and not isinstance(strategy, SteadyDDP):
            raise ConfigError(
                f"ddp.compression must be none unless several processes share their gradients, got "
                f"{self.compression!r} with {type(strategy).__name__}. Set it to none, or trainer.devices to 2 or more "
                "and trainer.strategy to auto."
            )


class SteadyDDP(DDPStrategy):
    """Lightning's DDP with gradients as views of their buckets, and the same buckets from the first step on.

    DDP lays out its buckets anew after the first backward pass. Gloo and NCCL sum the parts of a bucket in an order
    that depends on the place in it, so with three processes or more a resumed run would round its first step
    differently from a run that never stopped. Backward passes of zeros before the first step prevent that.

    Args:
        compression: As in `DDPConfig`.
        **kwargs: Arguments of DDPStrategy. `gradient_as_bucket_view` and `static_graph` default to on: the network
            runs the same modules at each step.
    """

    def __init__(self, *args: Any, compression: str = "none", **kwargs: Any) -> None:
        kwargs.setdefault("gradient_as_bucket_view", True)
        kwargs.setdefault("static_graph", not kwargs.get("find_unused_parameters", False))
        super().__init__(*args, **kwargs)
        self.compression = compression

    def configure_ddp(self) -> None:
        """Wrap the module and settle the buckets."""
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
        # As a lambda: torch refuses the hook by its name if it was built without NCCL, even on gloo.
        self.model.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))


def keep_strides(parameters: Iterable[nn.Parameter]) -> None:
    """Give gradients exactly their parameter's strides, by a hook that makes a view.

    The stride of a dimension of size 1 means nothing: a 1x1x1 weight in channels_last_3d has C there, and convolutions
    on a CPU return 1. DDP compares strides exactly, and warns of slow copies.
    """

    def as_parameter(parameter: nn.Parameter) -> Any:
        shape, strides = parameter.shape, parameter.stride()

        def hook(gradient: torch.Tensor) -> torch.Tensor:
            given = gradient.stride()
            same = all(a == b or size == 1 for size, a, b in zip(shape, given, strides, strict=True))
            return gradient.as_strided(shape, strides) if same and given != strides else gradient

        return hook

    for parameter in parameters:
        if 1 in parameter.shape:
            parameter.register_hook(as_parameter(parameter))


def _settle_buckets(model: DistributedDataParallel, parameters: list[nn.Parameter], device: torch.device) -> None:
    """Run backward passes of zeros until DDP knows the order of gradients; then drop the gradients."""
    module = model.module

    def zeros(anything: torch.Tensor) -> torch.Tensor:
        total = anything
        for parameter in parameters:
            total = total + 0 * parameter.sum()
        return total

    forward = module.forward
    module.forward = zeros
    try:
        for _ in range(2 if model.static_graph else 1):  # the first pass only records a static graph
            # The engine starts from the last parameter, as in the net.
            model(torch.zeros((), device=device)).backward()
            for parameter in parameters:
                parameter.grad = None
    finally:
        module.forward = forward
