"""What the network adds to pytorchvideo's residual blocks: dropped branches, and recomputation in the backward pass.

Neither has parameters or buffers, so that names in a state dict stay as they are.

Shape letters: N batch, C channels, T frames, H, W.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from video_gn.models._batch_norms import checkpoint_contexts

with warnings.catch_warnings():
    # fvcore, which pytorchvideo imports, compiles a loss with torch.jit.script that nothing here uses.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=Warning)
    from pytorchvideo.layers.convolutions import Conv2plus1d as Conv2plus1d
    from pytorchvideo.layers.swish import Swish as Swish
    from pytorchvideo.models.net import Net as Net
    from pytorchvideo.models.r2plus1d import create_r2plus1d as create_r2plus1d
    from pytorchvideo.models.resnet import BottleneckBlock as BottleneckBlock
    from pytorchvideo.models.resnet import ResBlock as ResBlock
    from pytorchvideo.models.resnet import ResStage
    from pytorchvideo.models.resnet import create_bottleneck_block as create_bottleneck_block
    from pytorchvideo.models.resnet import create_res_stage as create_res_stage
    from pytorchvideo.models.resnet import create_resnet as create_resnet
    from pytorchvideo.models.stem import ResNetBasicStem as ResNetBasicStem
    from pytorchvideo.models.stem import create_res_basic_stem as create_res_basic_stem
    from pytorchvideo.models.x3d import ProjectedPool as ProjectedPool
    from pytorchvideo.models.x3d import create_x3d as create_x3d


class DropPathSum(nn.Module):
    """Shortcut plus branch; in training a sample's branch is dropped at random (stochastic depth).

    A kept branch is divided by the probability of keeping it, so that the sum's mean is that of evaluation, where
    nothing is dropped. One draw per sample, from the device's global generator.

    Source: Huang et al. 2016 (arXiv:1603.09382), section 3; scaled in training, not at test, as timm's `drop_path`.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, shortcut_NCTHW: torch.Tensor, branch_NCTHW: torch.Tensor) -> torch.Tensor:
        """The sum, of the inputs' shape."""
        if not self.training or self.probability == 0:
            return shortcut_NCTHW + branch_NCTHW
        stays = 1 - self.probability
        factor_N1111 = branch_NCTHW.new_empty((branch_NCTHW.shape[0], 1, 1, 1, 1)).bernoulli_(stays).div_(stays)
        return shortcut_NCTHW + branch_NCTHW * factor_N1111

    def extra_repr(self) -> str:
        """The probability."""
        return f"probability={self.probability:g}"


class Stem(nn.Module):
    """pytorchvideo's stem, under its names; what follows the convolution can be recomputed instead of kept.

    `checkpointed` is as in `Stage`. The convolution's output is kept: it alone is over a quarter of a forward's work.
    """

    checkpointed: bool = False

    def __init__(self, stem: nn.Module) -> None:
        # Not a subclass of pytorchvideo's, whose __init__ passes that very class to super().
        super().__init__()
        self.conv = stem.get_submodule("conv")
        self.norm = stem.get_submodule("norm")
        self.activation = stem.get_submodule("activation")
        self.pool = stem.get_submodule("pool")

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """Convolution, norm, activation, pool."""
        x_NCTHW = self.conv(x_NCTHW)
        if self.checkpointed and self.training and torch.is_grad_enabled():
            return _recomputed(self._after_conv, x_NCTHW, draws=False)
        return self._after_conv(x_NCTHW)

    def _after_conv(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(self.activation(self.norm(x_NCTHW)))
        return pooled


class Stage(ResStage):
    """pytorchvideo's stage of residual blocks, whose activations can be recomputed instead of kept.

    Attributes:
        nonlocal_blocks: Non-local blocks by the number of the residual block that each follows; empty in most nets.
        checkpointed: In training with gradients, keep only each block's input and run the block again in the backward
            pass. Running statistics are not updated again, and the same branches are dropped.
    """

    checkpointed: bool = False

    def __init__(self, res_blocks: nn.ModuleList) -> None:
        super().__init__(res_blocks)
        self.nonlocal_blocks = nn.ModuleDict()

    def all_blocks(self) -> Iterator[nn.Module]:
        """Residual blocks, each with the non-local block that follows it, if one does."""
        for index, block in enumerate(self.res_blocks):
            yield block
            if str(index) in self.nonlocal_blocks:
                yield self.nonlocal_blocks[str(index)]

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """All blocks, one after the other."""
        recompute = self.checkpointed and self.training and torch.is_grad_enabled()
        for block in self.all_blocks():
            if recompute:
                draws = isinstance(getattr(block, "branch_fusion", None), DropPathSum)
                x_NCTHW = _recomputed(block, x_NCTHW, draws=draws)
            else:
                x_NCTHW = block(x_NCTHW)
        return x_NCTHW


def _recomputed(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, *, draws: bool) -> torch.Tensor:
    # The random state is saved only if something draws: reading a GPU's state waits for it.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": draws}
    if not torch.compiler.is_compiling():
        # A compiled graph updates statistics once by itself, and takes no contexts.
        options["context_fn"] = checkpoint_contexts
    output: torch.Tensor = checkpoint(function, x, **options)
    return output


def drop_paths(stages: Iterable[Stage], drop_path: float) -> None:
    """Drop the branches of all blocks, with a probability that rises linearly from 0 to the last block's `drop_path`.

    Source: the linear rule of Huang et al. 2016, Eq. 4, from 0 at the first block as timm's
        `calculate_drop_path_rates` has it: block i (from 0) of n gets drop_path * i / (n - 1).
    """
    blocks = [block for stage in stages for block in stage.res_blocks]
    for index, block in enumerate(blocks):
        probability = drop_path * index / (len(blocks) - 1)
        if probability > 0:
            block.branch_fusion = DropPathSum(probability)
