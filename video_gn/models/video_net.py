"""What all networks have in common, so that they are trained, tested and read from checkpoints alike.

Shape letters: N batch, C channels, T frames, H, W, P positions (of the head's window on the last map), Y classes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from video_gn.errors import ConfigError
from video_gn.models._i3d_arguments import check_counts, plain
from video_gn.models._residual import Stage, Stem
from video_gn.models.tables import OWN_NETWORK, LastMap


class VideoNet(nn.Module):
    """A network of `hub_nets.NETWORKS`: blocks one after the other, the last one a head with a classifier `proj`.

    In training it returns logits, in evaluation softmax scores, each averaged over the positions of the head's
    window (one position at the training size, several on a larger frame).

    Attributes:
        arguments: Plain values that a checkpoint can hold; `build_network(net.arguments)` rebuilds the net.
    """

    arguments: dict[str, Any]
    blocks: Any  # nn.ModuleList

    # ---- what each network has of its own ----------------------------------------------------

    @property
    def title(self) -> str:
        """The network for people."""
        raise NotImplementedError

    @property
    def last_map(self) -> LastMap:
        """Where the last map's cells lie."""
        raise NotImplementedError

    # ---- what they share ---------------------------------------------------------------------

    @property
    def activation_checkpointing(self) -> bool:
        """Whether training keeps only the residual blocks' inputs and recomputes the rest in the backward pass.

        It can be set at any time, is off by default, and is no argument of the net.

        Source: Chen et al. 2016 (arXiv:1604.06174).
        """
        return any(block.checkpointed for block in self.blocks if isinstance(block, Stem | Stage))

    @activation_checkpointing.setter
    def activation_checkpointing(self, value: bool) -> None:
        for block in self.blocks:
            if isinstance(block, Stem | Stage):
                block.checkpointed = bool(value)

    @property
    def num_classes(self) -> int:
        """Y."""
        return int(self.arguments["num_classes"])

    @property
    def num_features(self) -> int:
        """Length of what `embed` gives."""
        return self.classifier.in_features

    @property
    def classifier(self) -> nn.Linear:
        """The last layer, whose weight is (Y, C)."""
        linear: nn.Linear = self.blocks[-1].proj
        return linear

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """Logits in training, softmax scores in evaluation.

        Args:
            x_NCTHW: Normalized clips, floating point, in any memory format.

        Returns:
            (N, Y). Scores are at least float32, also under autocast.

        Raises:
            ValueError: for a clip of another shape, or too short or too small for the network.
            TypeError: for integer pixels.
        """
        logits_NPY = self.position_logits(x_NCTHW)
        return logits_NPY.mean(1) if self.training else _scores(logits_NPY)

    def position_logits(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, P, Y) of each position of the head's window; arguments and errors as `forward`."""
        logits_NPY: torch.Tensor = self.blocks[-1](self.features(x_NCTHW))
        return logits_NPY

    def pooled(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """The classifier's input (N, P, C) at each position; arguments and errors as `forward`."""
        pooled_NPC: torch.Tensor = self.blocks[-1].pooled(self.features(x_NCTHW))
        return pooled_NPC

    def logits(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, Y) in either mode, averaged over positions; arguments and errors as `forward`."""
        return self.position_logits(x_NCTHW).mean(1)

    def embed(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """The classifier's input (N, C), averaged over positions; arguments and errors as `forward`.

        The classifier makes `logits` of it, but for dropout in training.
        """
        return self.pooled(x_NCTHW).mean(1)

    def scores_and_embedding(self, x_NCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `forward` in evaluation and `embed` give, to the bit, of one pass."""
        pooled_NPC = self.pooled(x_NCTHW)
        return _scores(self.classifier(pooled_NPC)), pooled_NPC.mean(1)

    def features(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """The last map, (N, C, T', H', W'); arguments and errors as `forward`."""
        self.check_clip(x_NCTHW)
        for index in range(len(self.blocks) - 1):
            x_NCTHW = self.blocks[index](x_NCTHW)
        return x_NCTHW

    def replace_classifier(self, num_classes: int) -> nn.Linear:
        """Replace the classifier by a fresh one for other classes. Build the optimizer after that.

        Args:
            num_classes: Y of the new one.

        Returns:
            The new layer, on the old one's device and in its dtype.

        Raises:
            ValueError: if num_classes is below 1.
        """
        num_classes = plain(num_classes)
        check_counts(num_classes=num_classes)
        old = self.classifier
        new = nn.Linear(old.in_features, num_classes, device=old.weight.device, dtype=old.weight.dtype)
        initialize_classifier(new)
        self.blocks[-1].proj = new
        self.arguments["num_classes"] = num_classes
        return new

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())

    def check_clip(self, x_NCTHW: torch.Tensor) -> None:
        """Refuse clips that `forward` would."""
        channels = self.arguments.get("in_channels", 3)
        if x_NCTHW.ndim != 5 or x_NCTHW.shape[1] != channels:
            raise ValueError(
                f"a clip batch must be of shape (N, {channels}, T, H, W), got {tuple(x_NCTHW.shape)}. "
                "Put the channels before the frames."
            )
        if not x_NCTHW.is_floating_point():
            raise TypeError(f"clips must be floating point, got {x_NCTHW.dtype}. Scale and normalize the pixels first.")


def search_here() -> None:
    """Find a network of one's own in the current directory: `--model.net my_net.MyNet` of ./my_net.py."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def find_network(class_path: str) -> Callable[..., nn.Module]:
    """The class or function of an import path that a person has given, never one that a checkpoint names.

    Raises:
        ConfigError: if there is none.
    """
    search_here()
    home, _, name = class_path.rpartition(".")
    try:
        network: Callable[..., nn.Module] = getattr(import_module(home), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"model.net must be the import path of a class, got {class_path!r}: {error}.") from error
    return network


class OwnNet(nn.Module):
    """Anybody's module that turns clips (N, 3, T, H, W) into logits (N, Y), to be trained and tested as a `VideoNet`.

    Its checkpoints name its class, but nothing is ever imported or built from that name.

    Args:
        module: The module.

    Attributes:
        arguments: What its checkpoints say of it.
        num_classes: Y; 0 until the data are known.
        num_features: 0, since `embed` refuses.
        activation_checkpointing: As in `VideoNet`; always off.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        self.arguments: dict[str, Any] = {"network": OWN_NETWORK, "class": name}
        self.num_classes = 0
        self.num_features = 0
        self.activation_checkpointing = False

    @property
    def title(self) -> str:
        """The class's name."""
        return str(self.arguments["class"])

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """The module's logits in training, their softmax in evaluation, (N, Y).

        Raises:
            ConfigError: for a result of another shape.
        """
        try:
            logits = self.module(x_NCTHW)
        except RuntimeError as error:  # its traceback is for whoever wrote the module
            error.add_note(
                f"{self.title} was given clips {tuple(x_NCTHW.shape)}. If it takes others alone, set "
                "data.clip.num_frames, data.augment.crop_px and data.views.short_side_px."
            )
            raise
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        wanted = (len(x_NCTHW), self.num_classes or (shape[-1] if isinstance(shape, tuple) and shape else "classes"))
        if shape != wanted:
            raise ConfigError(
                f"{self.title} must return logits of shape {wanted}, one for each clip and class, got {shape} of "
                f"clips {tuple(x_NCTHW.shape)}. Average over time and space in it, and end it with as many outputs."
            )
        logits_NY: torch.Tensor = logits
        return logits_NY if self.training else _scores(logits_NY[:, None])

    def embed(self, x_NCTHW: torch.Tensor) -> Any:
        """Refuse: which of the module's maps are features is not known.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"embed must have a network of video_gn.models, got {self.title}: what its features are is not known. "
            "Call its own layers: predictor.net.module."
        )

    scores_and_embedding = embed

    def check_clip(self, x_NCTHW: torch.Tensor) -> None:
        """Nothing: the module knows which clips it takes."""


def _scores(logits_NPY: torch.Tensor) -> torch.Tensor:
    """Softmax scores (N, Y). Those of positions are averaged, not their logits, as scores of views are."""
    return logits_NPY.softmax(-1, dtype=torch.promote_types(logits_NPY.dtype, torch.float32)).mean(1)


def initialize_classifier(linear: nn.Linear) -> None:
    """Draw fresh weights in place."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
