"""Plain torch networks that bear each zoo's own names: what its weights mean, said a second time.

Nothing here comes from the package: a mistake in its tables of names cannot be repeated by its tests. Only
evaluation is written out. Pools, strides and the inflated first convolutions are as in each source's code.

Shape letters: N batch, C channels, T frames, H, W, P positions (of the head's window on the last map), Y classes.
"""

import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Blocks of a stage whose first convolution is 3x1x1, repeated to its depth. Source: SlowFast
# video_model_builder.py `_TEMPORAL_KERNEL_BASIS["i3d"]`; Non-local resnet_video_org.py `obtain_arc`, choices 2 and 4
# (50 and 101 alone); mmaction2 configs/_base_/models/i3d_r50.py `inflate`.
INFLATED = ((True,), (True, False), (True, False), (False, True))
STAGES = (2, 3, 4, 5)
# Blocks of res3 and res4 that a non-local one follows. Source: Non-local resnet_video_org.py (`layer_mod`), SlowFast
# configs/Kinetics/c2/I3D_NLN_8x8_R50.yaml, mmaction2 configs/recognition/i3d (`non_local`).
NONLOCAL = {50: {3: (1, 3), 4: (1, 3, 5)}, 101: {3: (1, 3), 4: (6, 13, 20)}}
EPS = 1e-5


@dataclass(frozen=True)
class Names:
    """Where each part lies: {s} is the stage 2..5, {l} the layer 1..4, {b} the block, {x} a..c, {n} 1..3."""

    conv1: str
    norm1: str
    conv: str
    norm: str
    shortcut: str
    shortcut_norm: str
    classifier: str
    theta: str = ""  # those of non-local blocks
    phi: str = ""
    g: str = ""
    out: str = ""
    out_norm: str = ""


NAMES = {
    # SlowFast: stem_helper.py (VideoModelStem, ResNetBasicStem), resnet_helper.py (ResStage, ResBlock,
    # BottleneckTransform), head_helper.py (ResNetBasicHead), video_model_builder.py (s1 .. s5, head).
    "slowfast": Names(
        "s1.pathway0_stem.conv",
        "s1.pathway0_stem.bn",
        "s{s}.pathway0_res{b}.branch2.{x}",
        "s{s}.pathway0_res{b}.branch2.{x}_bn",
        "s{s}.pathway0_res{b}.branch1",
        "s{s}.pathway0_res{b}.branch1_bn",
        "head.projection",
        "s{s}.pathway0_nonlocal{b}.conv_theta",  # nonlocal_helper.py
        "s{s}.pathway0_nonlocal{b}.conv_phi",
        "s{s}.pathway0_nonlocal{b}.conv_g",
        "s{s}.pathway0_nonlocal{b}.conv_out",
        "s{s}.pathway0_nonlocal{b}.bn",
    ),
    # mmaction2: backbones/resnet3d.py (ResNet3d, Bottleneck3d, each layer an mmcv ConvModule with `conv` and `bn`),
    # heads/i3d_head.py (fc_cls), recognizers/base.py (backbone, cls_head).
    "mmaction": Names(
        "backbone.conv1.conv",
        "backbone.conv1.bn",
        "backbone.layer{l}.{b}.conv{n}.conv",
        "backbone.layer{l}.{b}.conv{n}.bn",
        "backbone.layer{l}.{b}.downsample.conv",
        "backbone.layer{l}.{b}.downsample.bn",
        "cls_head.fc_cls",
        # mmcv: cnn/bricks/non_local.py (ConvModules; those that are pooled stand first in an nn.Sequential).
        "backbone.layer{l}.{b}.non_local_block.theta.conv",
        "backbone.layer{l}.{b}.non_local_block.phi.0.conv",
        "backbone.layer{l}.{b}.non_local_block.g.0.conv",
        "backbone.layer{l}.{b}.non_local_block.conv_out.conv",
        "backbone.layer{l}.{b}.non_local_block.conv_out.bn",
    ),
    # torchvision: models/resnet.py.
    "torchvision": Names(
        "conv1",
        "bn1",
        "layer{l}.{b}.conv{n}",
        "layer{l}.{b}.bn{n}",
        "layer{l}.{b}.downsample.0",
        "layer{l}.{b}.downsample.1",
        "fc",
    ),
    # Non-local: lib/models/resnet_video_org.py (conv1, res_conv1_bn, pred), resnet_helper.py (res2_0_branch2a ..),
    # model_builder_video.py (`Conv3dBN` and `Conv3dAffine`: prefix, then prefix + "_bn").
    "caffe2": Names(
        "conv1",
        "res_conv1_bn",
        "res{s}_{b}_branch2{x}",
        "res{s}_{b}_branch2{x}_bn",
        "res{s}_{b}_branch1",
        "res{s}_{b}_branch1_bn",
        "pred",
        "nonlocal_conv{s}_{b}_theta",  # nonlocal_helper.py
        "nonlocal_conv{s}_{b}_phi",
        "nonlocal_conv{s}_{b}_g",
        "nonlocal_conv{s}_{b}_out",
        "nonlocal_conv{s}_{b}_bn",
    ),
    # Detectron: detectron/modeling/ResNet.py (`basic_gn_stem`, `bottleneck_gn_transformation`,
    # `basic_gn_shortcut`). That R-50-GN.pkl holds pred_w and pred_b is from a converter's printed list of its keys.
    "detectron": Names(
        "conv1",
        "conv1_gn",
        "res{s}_{b}_branch2{x}",
        "res{s}_{b}_branch2{x}_gn",
        "res{s}_{b}_branch1",
        "res{s}_{b}_branch1_gn",
        "pred",
    ),
}


@dataclass(frozen=True)
class Shape:
    """What layouts do differently, in T, H, W; `window` is the head's side, None for the whole map."""

    conv1_stride: tuple[int, int, int]
    pool1: tuple[int, int, int]
    pool1_stride: tuple[int, int, int]
    pool1_padding: tuple[int, int, int]
    window: int | None


SHAPES = {
    # Non-local resnet_video_org.py: conv1 strides [2, 2, 2]; pool1 kernels [2, 3, 3], strides [2, 2, 2], pads 0.
    "nonlocal": Shape((2, 2, 2), (2, 3, 3), (2, 2, 2), (0, 0, 0), 7),
    # SlowFast video_model_builder.py (class ResNet): stem stride [1, 2, 2]; stem_helper.py: pool_layer.
    "slowfast": Shape((1, 2, 2), (1, 3, 3), (1, 2, 2), (0, 1, 1), 7),
    # mmaction2 configs/_base_/models/i3d_r50.py: conv1_stride_t=2, pool1_stride_t=2; I3DHead: AdaptiveAvgPool3d(1).
    "mmaction": Shape((2, 2, 2), (1, 3, 3), (2, 2, 2), (0, 1, 1), None),
}


class Norm(nn.Module):
    """Evaluation of "batch" (stored statistics), "affine" (scale and shift alone) or "group"."""

    def __init__(self, kind: str, channels: int, *, num_groups: int, counted: bool) -> None:
        super().__init__()
        self.kind = kind
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))
            if counted:
                self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "batch":
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPS)
        if self.kind == "group":
            return F.group_norm(x, self.num_groups, self.weight, self.bias, EPS)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


class ReferenceNet(nn.Module):
    """A bottleneck ResNet in evaluation, of clips (`dims=3`) or of pictures (`dims=2`).

    Args:
        names: whose, a key of `NAMES`.
        layout: whose strides and pools, a key of `SHAPES`; of pictures, what it has in H and W.
        norm: "batch", "affine" or "group".
        counted: batch norms hold `num_batches_tracked`.
        nonlocal_blocks: "softmax", "dot_product" or "softmax_4_frames" puts non-local blocks after those of
            `NONLOCAL`.
    """

    def __init__(
        self,
        names: str,
        layout: str,
        *,
        depth: int = 50,
        width: int = 8,
        num_classes: int = 7,
        norm: str = "batch",
        dims: int = 3,
        num_groups: int = 4,
        counted: bool = True,
        nonlocal_blocks: str | None = None,
    ) -> None:
        super().__init__()
        self.weighting, self.nonlocal_after = nonlocal_blocks, NONLOCAL[depth] if nonlocal_blocks else {}
        self.layout, self.dims, self.blocks, self.norm = layout, dims, BLOCKS[depth], norm
        self.names, self.shape = NAMES[names], SHAPES[layout]
        norms = {"kind": norm, "num_groups": num_groups, "counted": counted}
        self._put(self.names.conv1, self._conv(3, width, (5, 7, 7), self.shape.conv1_stride))
        self._put(self.names.norm1, Norm(channels=width, **norms))
        channels = width
        for stage, num_blocks in zip(STAGES, self.blocks, strict=True):
            inner = width * 2 ** (stage - 2)
            for block in range(num_blocks):
                time = 3 if self.inflated(stage, block) else 1
                space = 2 if block == 0 and stage > 2 else 1
                sides = {"a": (channels, inner), "b": (inner, inner), "c": (inner, 4 * inner)}
                kernels = {"a": (time, 1, 1), "b": (1, 3, 3), "c": (1, 1, 1)}
                for letter, (before, after) in sides.items():
                    stride = (1, space, space) if letter == "b" else (1, 1, 1)
                    conv = self._conv(before, after, kernels[letter], stride)
                    self._put(self.name("conv", stage, block, letter), conv)
                    self._put(self.name("norm", stage, block, letter), Norm(channels=after, **norms))
                if block == 0:
                    conv = self._conv(channels, 4 * inner, (1, 1, 1), (1, space, space))
                    self._put(self.name("shortcut", stage, 0), conv)
                    self._put(self.name("shortcut_norm", stage, 0), Norm(channels=4 * inner, **norms))
                channels = 4 * inner
                if block in self.nonlocal_after.get(stage, ()):
                    for part in ("theta", "phi", "g"):
                        self._put(self.name(part, stage, block), nn.Conv3d(channels, channels // 2, 1))
                    # mmcv's ConvModule has no bias before a norm.
                    bias = layout != "mmaction"
                    self._put(self.name("out", stage, block), nn.Conv3d(channels // 2, channels, 1, bias=bias))
                    if norm != "affine":  # Non-local's config of its networks with folded norms: USE_BN is false
                        self._put(self.name("out_norm", stage, block), Norm(channels=channels, **norms))
        self._put(self.names.classifier, nn.Linear(channels, num_classes))
        self.requires_grad_(False).eval()

    @staticmethod
    def inflated(stage: int, block: int) -> bool:
        pattern = INFLATED[stage - 2]
        return pattern[block % len(pattern)]

    def name(self, part: str, stage: int, block: int, letter: str = "a") -> str:
        return getattr(self.names, part).format(s=stage, l=stage - 1, b=block, x=letter, n="abc".index(letter) + 1)

    @property
    def classifier(self) -> nn.Module:
        return self.get_submodule(self.names.classifier)

    def _put(self, path: str, module: nn.Module) -> None:
        *parents, last = path.split(".")
        holder: nn.Module = self
        for parent in parents:
            if parent not in holder._modules:
                holder.add_module(parent, nn.Module())
            holder = holder._modules[parent]
        holder.add_module(last, module)

    def _conv(self, before: int, after: int, kernel: tuple, stride: tuple) -> nn.Module:
        kind = nn.Conv3d if self.dims == 3 else nn.Conv2d
        kernel, stride = kernel[-self.dims :], stride[-self.dims :]
        return kind(before, after, kernel, stride, padding=tuple(side // 2 for side in kernel), bias=False)

    def _at(self, x: torch.Tensor, *where) -> torch.Tensor:
        return self.get_submodule(self.name(*where))(x)

    def _nonlocal(self, x: torch.Tensor, stage: int, block: int) -> torch.Tensor:
        """Non-local nonlocal_helper.py and SlowFast's pool first and divide by the root; mmaction2 does neither."""
        if self.weighting == "softmax_4_frames" and stage == 3 and x.shape[2] > 4:  # its add_nonlocal_group
            return torch.cat([self._nonlocal(four, stage, block) for four in x.split(4, dim=2)], dim=2)
        theta = self._at(x, "theta", stage, block)
        if self.layout == "mmaction":
            phi, g = (F.max_pool3d(self._at(x, part, stage, block), (1, 2, 2)) for part in ("phi", "g"))
        else:
            phi, g = (self._at(F.max_pool3d(x, (1, 2, 2)), part, stage, block) for part in ("phi", "g"))
        weights = torch.einsum("nctij,ncuvw->ntijuvw", theta, phi).flatten(4)
        if self.weighting == "dot_product":
            weights = weights / weights.shape[-1]
        elif self.layout == "mmaction":
            weights = weights.softmax(-1)
        else:
            weights = (weights / theta.shape[1] ** 0.5).softmax(-1)
        y = torch.einsum("ntijk,nck->nctij", weights, g.flatten(2))
        y = self._at(y, "out", stage, block)
        return x + (y if self.norm == "affine" else self._at(y, "out_norm", stage, block))

    def stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The maps "pool1", "res2" .. "res5"; "pool2" too, of clips."""
        shape, dims = self.shape, self.dims
        pool = F.max_pool3d if dims == 3 else F.max_pool2d
        x = self.get_submodule(self.names.norm1)(self.get_submodule(self.names.conv1)(x)).relu()
        x = pool(x, shape.pool1[-dims:], shape.pool1_stride[-dims:], shape.pool1_padding[-dims:])
        maps = {"pool1": x}
        for stage, num_blocks in zip(STAGES, self.blocks, strict=True):
            for block in range(num_blocks):
                branch = x
                for letter in "abc":
                    branch = self._at(self._at(branch, "conv", stage, block, letter), "norm", stage, block, letter)
                    branch = branch.relu() if letter != "c" else branch
                if block == 0:
                    x = self._at(self._at(x, "shortcut", stage, 0), "shortcut_norm", stage, 0)
                x = (x + branch).relu()
                if block in self.nonlocal_after.get(stage, ()):
                    x = self._nonlocal(x, stage, block)
            maps[f"res{stage}"] = x
            if stage == 2 and dims == 3:
                x = maps["pool2"] = F.max_pool3d(x, (2, 1, 1), (2, 1, 1))
        return maps

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The last map."""
        return self.stages(x)["res5"]

    def position_logits(self, x: torch.Tensor) -> torch.Tensor:
        """(N, P, Y): the average over a window, moved by one position at a time, then the classifier.

        The windows of SlowFast and Non-local are as large as the map of a training crop: where the map is smaller
        the crop was too.
        """
        x = self.features(x)
        x = x.mean(2) if self.dims == 3 else x
        window = [side if self.shape.window is None else min(side, self.shape.window) for side in x.shape[-2:]]
        return self.classifier(F.avg_pool2d(x, window, stride=1).flatten(2).transpose(1, 2))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(N, Y): the mean of the positions' logits."""
        return self.position_logits(x).mean(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, Y) scores: softmax at each position, then the mean.

        Source: SlowFast head_helper.py (ResNetBasicHead: act, then mean); Non-local resnet_video_org.py (split
        "test"); mmaction2's i3d_r50 has one position and average_clips="prob".
        """
        return self.position_logits(x).softmax(-1).mean(1)

    def blobs(self, *, pred_dims: int = 2) -> dict:
        """The numpy arrays of a Caffe2 file; `pred_w` is (Y, C), or (Y, C, 1, 1, 1) for 5 dimensions.

        Source of the endings: Caffe2's SpatialBN (_s, _b, _rm, _riv; the last one holds the variance) and GroupNorm
        (_s, _b); Non-local lib/utils/bn_helper.py.
        """
        endings = {"running_mean": "_rm", "running_var": "_riv"}
        blobs = {}
        for key, tensor in self.state_dict().items():
            module, kind = key.rsplit(".", 1)
            is_norm = isinstance(self.get_submodule(module), Norm)
            ending = endings.get(kind) or {"weight": "_s" if is_norm else "_w", "bias": "_b"}[kind]
            blobs[module + ending] = tensor.numpy().copy()
        pred = self.names.classifier + "_w"
        blobs[pred] = blobs[pred].reshape(blobs[pred].shape + (1,) * (pred_dims - 2))
        return blobs


def slowfast_i3d(**arguments) -> ReferenceNet:
    """SlowFast's I3D."""
    return ReferenceNet("slowfast", "slowfast", **arguments)


def mmaction_i3d(**arguments) -> ReferenceNet:
    """mmaction2's i3d_r50."""
    return ReferenceNet("mmaction", "mmaction", **arguments)


def nonlocal_port(**arguments) -> ReferenceNet:
    """Non-local's I3D under torchvision's names, with no count of batches."""
    return ReferenceNet("torchvision", "nonlocal", counted=False, **arguments)


def nonlocal_caffe2(**arguments) -> ReferenceNet:
    """Non-local's own I3D; `norm="affine"` as its conversion leaves it; `dims=2` for its ImageNet start."""
    return ReferenceNet("caffe2", "nonlocal", counted=False, **arguments)


def slowfast_caffe2(**arguments) -> ReferenceNet:
    """SlowFast's I3D as its zoo holds it, in Caffe2's names (slowfast/utils/c2_model_loading.py)."""
    return ReferenceNet("caffe2", "slowfast", counted=False, **arguments)


def detectron_gn(**arguments) -> ReferenceNet:
    """Detectron's R-50-GN, of BGR pictures in 0..255 minus `DETECTRON_MEAN`; 32 groups in the original."""
    return ReferenceNet("detectron", "slowfast", norm="group", dims=2, **arguments)


# Source: Detectron detectron/core/config.py, PIXEL_MEANS (B, G, R).
DETECTRON_MEAN = (102.9801, 115.9465, 122.7717)

# Of He's fan-in scale: with it, activations of a hundred layers stay within a few orders of magnitude.
GAIN = 0.6


def random_state(state: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """Distinct random values in the shapes of a state dict."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, torch.Tensor] = {}
    for index, (key, tensor) in enumerate(state.items()):
        normal = torch.empty(tensor.shape).normal_(generator=generator) if tensor.is_floating_point() else None
        uniform = torch.empty(tensor.shape).uniform_(generator=generator) if tensor.is_floating_point() else None
        if normal is None:
            values[key] = torch.tensor(1000 + 10 * seed + index)  # num_batches_tracked
        elif tensor.ndim > 2:
            values[key] = normal * GAIN * (2 / tensor[0].numel()) ** 0.5
            if re.search(r"theta|phi", key):
                values[key] *= 0.2  # products far from 0 and from where a softmax is 0 and 1
        elif tensor.ndim == 2:
            values[key] = normal / tensor.shape[1] ** 0.5
        elif key.endswith("running_var"):
            values[key] = 0.5 + 1.5 * uniform
        elif key.endswith("weight"):
            values[key] = 0.5 + uniform
        else:
            values[key] = 0.1 * normal  # biases, running means
    distinct = {(value.numel(), value.flatten()[:16].numpy().tobytes()) for value in values.values()}
    assert len(distinct) == len(values), "two tensors are equal: a mix-up of these would not show"
    return values


def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network with distinct random values, strictly; in evaluation after that."""
    net.load_state_dict(random_state(net.state_dict(), seed), strict=True)
    return net.requires_grad_(False).eval()


def spread(net: ReferenceNet, x: torch.Tensor) -> ReferenceNet:
    """Scale the classifier so that logits have a spread of 2: scores far from 0 and 1, positions that differ."""
    net.classifier.weight.mul_(2 / net.position_logits(x).std())
    return net


def stages_2d(net, x):
    """The maps of a network in torchvision's names, torchvision's or timm's."""
    x = net.maxpool(net.bn1(net.conv1(x)).relu())
    maps = {"pool1": x}
    for stage in range(2, 6):
        x = maps[f"res{stage}"] = net.get_submodule(f"layer{stage - 1}")(x)
    return maps


class CircularInTime(nn.Module):
    """A convolution whose padding in time is circular: a video of one picture has no ends."""

    def __init__(self, conv):
        super().__init__()
        self.radius = conv.padding[0]
        conv.padding = (0, *conv.padding[1:])
        self.conv = conv

    def forward(self, x):
        return self.conv(F.pad(x, (0, 0, 0, 0, self.radius, self.radius), mode="circular"))


def make_circular(net):
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            net.set_submodule(name, CircularInTime(module))
    return net
