"""How each zoo names the tensors of a bottleneck ResNet: one table a zoo, from its names to ours.

Our names are pytorchvideo's (`blocks.1.res_blocks.0.branch2.conv_a.weight`; it has none for non-local blocks within a
stage). A row holds two templates with the same fields: {stage}, {block}, {conv}, {norm}, and {part} and {affine} of
non-local blocks; a table says how the zoo writes their values. The tables are read in both directions. To add a zoo,
add a table to `KEYMAPS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from video_gn.weights.about import STAGES

_STEM = "blocks.0.conv.weight"
_STEM_NORM = "blocks.0.norm.{norm}"
_CONV = "blocks.{stage}.res_blocks.{block}.branch2.conv_{conv}.weight"
_NORM = "blocks.{stage}.res_blocks.{block}.branch2.norm_{conv}.{norm}"
_SHORTCUT = "blocks.{stage}.res_blocks.{block}.branch1_conv.weight"
_SHORTCUT_NORM = "blocks.{stage}.res_blocks.{block}.branch1_norm.{norm}"
_NONLOCAL = "blocks.{stage}.nonlocal_blocks.{block}.conv_{part}.{affine}"
_NONLOCAL_NORM = "blocks.{stage}.nonlocal_blocks.{block}.norm.{norm}"

_TORCH_NORM = {k: k for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
_ABC = {"a": "a", "b": "b", "c": "c"}
_123 = {"1": "a", "2": "b", "3": "c"}
_PARTS = {part: part for part in ("theta", "phi", "g", "out")}
_AFFINE = {"weight": "weight", "bias": "bias"}
_CAFFE2_AFFINE = {"w": "weight", "b": "bias"}


@dataclass(frozen=True)
class Keymap:
    """The names of one zoo.

    Args:
        name: Name as a `format`.
        title: Name for people.
        rows: (the zoo's template, ours).
        stages: The zoo's stage -> our block number.
        convs: The zoo's name of a block's convolution -> a, b or c.
        norms: The zoo's name of a norm's tensor -> torch's.
        parts: The zoo's name of a non-local block's convolution -> theta, phi, g or out.
        affine: The zoo's name of such a convolution's tensor -> weight or bias.
        ignored: (pattern of whole names, reason) of what is no weight.
    """

    name: str
    title: str
    rows: tuple[tuple[str, str], ...]
    stages: Mapping[str, str]
    convs: Mapping[str, str] = field(default_factory=lambda: _ABC)
    norms: Mapping[str, str] = field(default_factory=lambda: _TORCH_NORM)
    parts: Mapping[str, str] = field(default_factory=lambda: _PARTS)
    affine: Mapping[str, str] = field(default_factory=lambda: _AFFINE)
    ignored: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _tables(self) -> dict[str, Mapping[str, str]]:
        tables = {"stage": self.stages, "conv": self.convs, "norm": self.norms}
        return tables | {"part": self.parts, "affine": self.affine}

    @cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs, self._tables), ours) for theirs, ours in self.rows]

    @cached_property
    def _to_theirs(self) -> list[tuple[re.Pattern[str], str]]:
        fields = {name: dict.fromkeys(table.values(), "") for name, table in self._tables.items()}
        return [(_pattern(ours, fields), theirs) for theirs, ours in self.rows]

    def to_ours(self, name: str) -> str | None:
        """Our name of one of the zoo's tensors; None if no row matches."""
        for pattern, ours in self._to_ours:
            match = pattern.fullmatch(name)
            if match is not None:
                return ours.format(**{k: self._tables.get(k, {}).get(v, v) for k, v in match.groupdict().items()})
        return None

    def to_theirs(self, name: str) -> str | None:
        """The zoo's name of one of our tensors; None if it has none."""
        for pattern, theirs in self._to_theirs:
            match = pattern.fullmatch(name)
            if match is not None:
                tables = self._tables
                values = {k: _key_of(tables[k], v) if k in tables else v for k, v in match.groupdict().items()}
                return theirs.format(**values)
        return None

    def why_ignored(self, name: str) -> str | None:
        """Why a tensor is not the network's; None if it should be."""
        return next((why for pattern, why in self.ignored if re.fullmatch(pattern, name)), None)


def _pattern(template: str, values: Mapping[str, Mapping[str, str]]) -> re.Pattern[str]:
    parts = []
    for literal, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(literal))
        if name:
            choices = "|".join(re.escape(v) for v in values[name]) if name in values else r"0|[1-9]\d{0,3}"
            parts.append(f"(?P<{name}>{choices})")
    return re.compile("".join(parts))


def _key_of(table: Mapping[str, str], value: str) -> str:
    return next(k for k, v in table.items() if v == value)


_CAFFE2_IGNORED = (
    (r".*_momentum", "momentum of its training"),
    (r"model_iter|lr|epoch|weight_order", "state of its training"),
)

_OWN_ROWS = (
    (_STEM, _STEM),
    (_STEM_NORM, _STEM_NORM),
    (_CONV, _CONV),
    (_NORM, _NORM),
    (_SHORTCUT, _SHORTCUT),
    (_SHORTCUT_NORM, _SHORTCUT_NORM),
    (_NONLOCAL, _NONLOCAL),
    (_NONLOCAL_NORM, _NONLOCAL_NORM),
    ("blocks.6.proj.weight", "blocks.6.proj.weight"),
    ("blocks.6.proj.bias", "blocks.6.proj.bias"),
)
_OWN_STAGES = {s: s for s in STAGES}


def _caffe2_rows(norm: str, stem_norm: str) -> tuple[tuple[str, str], ...]:
    return (
        ("conv1_w", _STEM),
        (f"{stem_norm}_{{norm}}", _STEM_NORM),
        ("res{stage}_{block}_branch2{conv}_w", _CONV),
        (f"res{{stage}}_{{block}}_branch2{{conv}}_{norm}_{{norm}}", _NORM),
        ("res{stage}_{block}_branch1_w", _SHORTCUT),
        (f"res{{stage}}_{{block}}_branch1_{norm}_{{norm}}", _SHORTCUT_NORM),
        ("nonlocal_conv{stage}_{block}_{part}_{affine}", _NONLOCAL),
        (f"nonlocal_conv{{stage}}_{{block}}_{norm}_{{norm}}", _NONLOCAL_NORM),
        ("pred_w", "blocks.6.proj.weight"),
        ("pred_b", "blocks.6.proj.bias"),
    )


KEYMAPS: dict[str, Keymap] = {
    table.name: table
    for table in (
        # Source: pytorchvideo/models/resnet.py; our own networks bear the same names.
        Keymap("pytorchvideo", "pytorchvideo", rows=_OWN_ROWS, stages=_OWN_STAGES),
        # Source: SlowFast's slowfast/models/resnet_helper.py, stem_helper.py, head_helper.py, nonlocal_helper.py.
        Keymap(
            "slowfast",
            "SlowFast",
            rows=(
                ("s1.pathway0_stem.conv.weight", _STEM),
                ("s1.pathway0_stem.bn.{norm}", _STEM_NORM),
                ("s{stage}.pathway0_res{block}.branch2.{conv}.weight", _CONV),
                ("s{stage}.pathway0_res{block}.branch2.{conv}_bn.{norm}", _NORM),
                ("s{stage}.pathway0_res{block}.branch1.weight", _SHORTCUT),
                ("s{stage}.pathway0_res{block}.branch1_bn.{norm}", _SHORTCUT_NORM),
                ("s{stage}.pathway0_nonlocal{block}.conv_{part}.{affine}", _NONLOCAL),
                ("s{stage}.pathway0_nonlocal{block}.bn.{norm}", _NONLOCAL_NORM),
                ("head.projection.weight", "blocks.6.proj.weight"),
                ("head.projection.bias", "blocks.6.proj.bias"),
            ),
            stages=dict(zip("2345", STAGES, strict=True)),
        ),
        # Source: mmaction2's mmaction/models/backbones/resnet3d.py, heads/i3d_head.py; mmcv's cnn/bricks/non_local.py.
        Keymap(
            "mmaction",
            "mmaction2",
            rows=(
                ("backbone.conv1.conv.weight", _STEM),
                ("backbone.conv1.bn.{norm}", _STEM_NORM),
                ("backbone.layer{stage}.{block}.conv{conv}.conv.weight", _CONV),
                ("backbone.layer{stage}.{block}.conv{conv}.bn.{norm}", _NORM),
                ("backbone.layer{stage}.{block}.downsample.conv.weight", _SHORTCUT),
                ("backbone.layer{stage}.{block}.downsample.bn.{norm}", _SHORTCUT_NORM),
                ("backbone.layer{stage}.{block}.non_local_block.{part}.conv.{affine}", _NONLOCAL),
                ("backbone.layer{stage}.{block}.non_local_block.conv_out.bn.{norm}", _NONLOCAL_NORM),
                ("cls_head.fc_cls.weight", "blocks.6.proj.weight"),
                ("cls_head.fc_cls.bias", "blocks.6.proj.bias"),
            ),
            stages=dict(zip("1234", STAGES, strict=True)),
            convs=_123,
            parts={"theta": "theta", "phi.0": "phi", "g.0": "g", "conv_out": "out"},
            ignored=((r"data_preprocessor\.(mean|std)", "preprocessing, not a weight"),),
        ),
        # Source: torchvision's torchvision/models/resnet.py; timm's ResNets and ports of other zoos use its names.
        Keymap(
            "torchvision",
            "torchvision",
            rows=(
                ("conv1.weight", _STEM),
                ("bn1.{norm}", _STEM_NORM),
                ("layer{stage}.{block}.conv{conv}.weight", _CONV),
                ("layer{stage}.{block}.bn{conv}.{norm}", _NORM),
                ("layer{stage}.{block}.downsample.0.weight", _SHORTCUT),
                ("layer{stage}.{block}.downsample.1.{norm}", _SHORTCUT_NORM),
                ("fc.weight", "blocks.6.proj.weight"),
                ("fc.bias", "blocks.6.proj.bias"),
            ),
            stages=dict(zip("1234", STAGES, strict=True)),
            convs=_123,
        ),
        # Source: video-nonlocal-net's lib/models/resnet_video_org.py; SlowFast's zoo has files of the same names.
        Keymap(
            "caffe2",
            "Non-local / SlowFast Caffe2",
            rows=_caffe2_rows("bn", "res_conv1_bn"),
            stages=dict(zip("2345", STAGES, strict=True)),
            norms={"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"},
            affine=_CAFFE2_AFFINE,
            ignored=_CAFFE2_IGNORED,
        ),
        # Source: Detectron's detectron/modeling/ResNet.py with Group Norm.
        Keymap(
            "detectron",
            "Detectron Caffe2",
            rows=_caffe2_rows("gn", "conv1_gn"),
            stages=dict(zip("2345", STAGES, strict=True)),
            norms={"s": "weight", "b": "bias"},
            affine=_CAFFE2_AFFINE,
            ignored=_CAFFE2_IGNORED,
        ),
    )
}

FORMATS = ("video_gn", *KEYMAPS)
