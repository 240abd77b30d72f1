"""Loads the weights of any zoo into a network: all of them, or an error that names what does not fit.

Everything is checked and prepared first; the network is written to only if nothing is wrong.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from video_gn.checks import check_choice
from video_gn.errors import CheckpointError
from video_gn.lists.class_names import class_key
from video_gn.models.tables import I3D_NETWORK
from video_gn.shown import count, shown
from video_gn.weights.about import UNKNOWN, network_of
from video_gn.weights.files import read_file
from video_gn.weights.formats import Source, group_rule, norm_family, recognize, rule_in_words
from video_gn.weights.named import find_weights
from video_gn.weights.report import DROPPED, MISSHAPEN, TAKEN, UNEXPECTED, UNFIT, Entry, Left, LoadReport

if TYPE_CHECKING:
    from video_gn.models import VideoNet

STEM = "blocks.0.conv.weight"
NONLOCAL = ".nonlocal_blocks."
_OWN_STEPS = "the warm-up of batch renorm counts the steps of its own training"
_LISTED = 12  # problems that an error names; its report has all


def load_into(
    net: VideoNet,
    path: str | Path,
    *,
    format: str = "auto",
    norm_mismatch: Literal["error", "reinit"] = "error",
    layout_mismatch: Literal["error", "allow"] = "error",
    ignore: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> LoadReport:
    """Load a file's weights into a network, strictly.

    Args:
        net: Network of `video_gn.models.NETWORKS`, on any device, floating point.
        path: Weight file of any zoo in `FORMATS`, recognized from its content; or PACKAGE:NAME, see
            `video_gn.weights.named.find_weights`.
        format: Format of the file, or "auto".
        norm_mismatch: For weights of another kind of norm: "error", or "reinit" to keep the network's own initial
            norms and take everything else.
        layout_mismatch: For weights that were trained with another stem and pooling: "error", or "allow".
        ignore: Patterns, as of file names (`aux_head.*`), of names in the file to leave out.
        classes: The network's classes by number. The classifier is reordered if the file has the same ones in another
            order, and dropped if it has others.

    Returns:
        What was done with every tensor. `report.preprocessing` is what the network's input should be normalized by.

    Raises:
        CheckpointError: naming the file and every key that does not fit; the network is unchanged. Its
            `report` says what would have been done with each.
        ValueError: for a setting that is not one of those above.
    """
    check_choice("norm_mismatch", norm_mismatch, ("error", "reinit"))
    check_choice("layout_mismatch", layout_mismatch, ("error", "allow"))
    source = recognize(read_file(find_weights(path)), format=format)
    return merge(
        net, source, norm_mismatch=norm_mismatch, layout_mismatch=layout_mismatch, ignore=ignore, classes=classes
    )


def merge(
    net: VideoNet,
    source: Source,
    *,
    norm_mismatch: str = "error",
    layout_mismatch: str = "error",
    ignore: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> LoadReport:
    """`load_into` for a file that has been read; the same arguments, result and errors."""
    plan = _Plan(net, source, ignore=ignore, classes=classes, reinit_norms=norm_mismatch == "reinit")
    report = plan.report()
    wrong = plan.network_differs(norm_mismatch=norm_mismatch, layout_mismatch=layout_mismatch)
    if wrong is not None or report.problems:
        raise _error(source, report, wrong)
    with torch.no_grad():
        for name, tensor in plan.new.items():
            plan.state[name].copy_(tensor)
    return report


class _Plan:
    """What would be loaded into which tensor; nothing is written."""

    def __init__(
        self, net: VideoNet, source: Source, *, ignore: Sequence[str], classes: Sequence[str], reinit_norms: bool
    ) -> None:
        self.source = source
        self.arguments = net.arguments
        self.state: dict[str, torch.Tensor] = net.state_dict()
        self.norm_differs = _norm_difference(source, net.arguments)
        self.drops_norms = reinit_norms and self.norm_differs is not None
        self.order: list[int] | None = None
        self.classifier_reason = self._compare_classes(list(classes))
        self.ignore = tuple(ignore)
        self.used_patterns: set[str] = set()
        self.ignored_targets: set[str | None] = set()
        self.new: dict[str, torch.Tensor] = {}
        self.taken_from: dict[str, str] = {}
        self.entries = [
            *(Entry(key, None, DROPPED, reason=why) for key, why in source.ignored.items()),
            *(self._entry(key, tensor) for key, tensor in source.tensors.items()),
        ]
        self.remaining = self._remaining()

    def report(self) -> LoadReport:
        source = self.source
        return LoadReport(
            path=source.path,
            format=source.format,
            container=source.container,
            norm=source.norm,
            layout=source.layout,
            depth=source.depth,
            num_classes=source.num_classes,
            preprocessing=source.preprocessing,
            entries=tuple(self.entries),
            remaining=tuple(self.remaining),
            outside=source.outside,
            foreign=source.foreign,
            notes=tuple(self._notes()),
        )

    def network_differs(self, *, norm_mismatch: str, layout_mismatch: str) -> str | None:
        """The difference that explains all others, or None."""
        source, net = self.source, self.arguments
        here = network_of(net)
        if here != I3D_NETWORK and source.network != here:
            if source.is_2d:
                return f"is of another network: an image network, which only an I3D is inflated from, not {here}"
            # An unrecognized file counts as an I3D's.
            return f"is of another network: {source.network}, not {here}. Set model.net to the one it was trained with"
        is_folded_2d = source.is_2d and source.affine  # nothing of it fails to fit, and all of it would be wrong
        if here == I3D_NETWORK and (is_folded_2d or any(e.status not in (TAKEN, DROPPED) for e in self.entries)):
            from video_gn.weights.zoos import other_network

            other = other_network(source) if source.network == here else f"pytorchvideo's {source.network}"
            if other is not None:
                return f"is of another network: {other}. It cannot be loaded into an I3D"
        if source.depth is None and any(source.blocks):
            return f"is of another network: it has {source.blocks} blocks in its stages, which no known depth has"
        for name, there in (("depth", source.depth), ("width", source.width)):
            if there is not None and there != net[name]:
                return f"is of another network ({name}: {there} there, {net[name]} here). Set model.net.{name} {there}"
        if source.layout not in (None, net.get("layout")) and layout_mismatch == "error":
            is_bare = source.format == "pytorchvideo"
            bare = " (a bare state_dict() of such a network does not say its own)" if is_bare else ""
            return (
                f"needs layout {source.layout!r}, the network has {net['layout']!r}{bare}. Set the net's layout, "
                "or layout_mismatch to 'allow' to take the weights all the same"
            )
        blocks, ours = source.nonlocal_blocks, net.get("nonlocal_blocks")
        if blocks is not None and blocks != ours and (blocks != UNKNOWN or ours is None):
            weighting, name = ("", "") if blocks == UNKNOWN else (f" of weighting {blocks!r}", f" {blocks}")
            return f"has non-local blocks{weighting}, the network has {ours!r}. Set model.net.nonlocal_blocks{name}"
        if self.norm_differs is not None and norm_mismatch == "error":
            return f"{self.norm_differs}. Set the net's norm, or norm_mismatch to 'reinit' to keep the net's own norms"
        return None

    # ---- the file's tensors ------------------------------------------------------------------

    def _entry(self, key: str, tensor: torch.Tensor) -> Entry:
        target = self.source.names.get(key)

        def refused(status: str, reason: str) -> Entry:
            return Entry(key, target, status, shape=tuple(tensor.shape), reason=reason)

        matching = {p for p in self.ignore if fnmatch.fnmatchcase(key, p)}
        if matching:
            self.used_patterns |= matching
            self.ignored_targets.add(target)
            return refused(DROPPED, "ignored as asked")
        if target is not None and self.drops_norms and _is_norm_name(target):
            return refused(DROPPED, f"norm_mismatch is 'reinit': {self.norm_differs}")
        if target is None or target not in self.state:
            return refused(UNEXPECTED, "the network has no place for it")
        if target.startswith(self.source.classifier) and self.classifier_reason is not None:
            return refused(DROPPED, self.classifier_reason)
        if target in self.taken_from:
            return refused(UNEXPECTED, f"means the same tensor as {self.taken_from[target]}")
        if target.endswith("num_batches_tracked") and self.arguments["norm"] == "batch_renorm" != self.source.norm:
            return refused(DROPPED, _OWN_STEPS)
        self.taken_from[target] = key
        return self._fit(key, target, tensor)

    def _fit(self, key: str, target: str, tensor: torch.Tensor) -> Entry:
        shape, wanted = tuple(tensor.shape), tuple(self.state[target].shape)
        changes = [] if key in (target, f"net.{target}") else ["renamed"]
        is_count = target.endswith("num_batches_tracked")
        # Types and shapes first: a hostile shape must not get memory.
        reason = _unfit(tensor, is_count=is_count)
        if reason is not None:
            return Entry(key, target, UNFIT, shape=shape, reason=reason)
        # (O, I, H, W) for (O, I, T, H, W)
        inflates = len(shape) == 4 and len(wanted) == 5 and shape == (*wanted[:2], *wanted[3:])
        reshapes = (
            target.startswith(self.source.classifier)
            and shape != wanted
            and _without_ones(shape, len(wanted)) == wanted
        )
        if shape != wanted and not inflates and not reshapes:
            reason = f"has shape {shape}, the network's {target} {wanted}"
            return Entry(key, target, MISSHAPEN, shape=shape, reason=reason)
        dtype = self.state[target].dtype
        if tensor.dtype != dtype and not is_count:
            changes.append(f"converted from {str(tensor.dtype).removeprefix('torch.')}")
            tensor = tensor.to(dtype)
        if not is_count and not _all_finite(tensor):
            reason = f"has values that are not finite (NaN or infinite) in {str(dtype).removeprefix('torch.')}"
            return Entry(key, target, UNFIT, shape=shape, reason=reason)
        if target.endswith("running_var") and bool((tensor < 0).any()):
            return Entry(key, target, UNFIT, shape=shape, reason="is a variance below 0")
        if inflates:
            changes.append("inflated")
            tensor = _inflate(tensor, wanted[2])
        if reshapes:
            changes.append("reshaped")
            tensor = tensor.reshape(wanted)
        if target == STEM:
            tensor = self._adapt_stem(tensor, changes)
        if target.startswith(self.source.classifier) and self.order is not None:
            changes.append("reordered")
            tensor = tensor[self.order]
        self.new[target] = tensor
        return Entry(key, target, TAKEN, tuple(changes), shape)

    def _adapt_stem(self, weight: torch.Tensor, changes: list[str]) -> torch.Tensor:
        if self.source.bgr:
            changes.append("reversed from BGR to RGB")
            weight = weight.flip(1)
        if self.source.format == "detectron":
            from video_gn.weights.zoos import DETECTRON_SCALE

            changes.append(f"scaled by {DETECTRON_SCALE:g}")
            weight = weight * DETECTRON_SCALE
        return weight

    def _compare_classes(self, here: list[str]) -> str | None:
        """Why the classifier cannot be taken, or None; sets the order of its rows if that differs."""
        there, number = list(self.source.classes), self.source.num_classes
        wanted = int(self.arguments["num_classes"])
        if number is not None and number != wanted:
            return f"it has {count(number, 'class', 'classes')}, the network {wanted}"
        if number is None or not here or not there or here == there:
            return None
        here, there = [class_key(name) for name in here], [class_key(name) for name in there]
        if sorted(here) != sorted(there):
            return "its classes differ from the network's, though not in number"
        self.order = [there.index(name) for name in here]
        return None

    # ---- the network's tensors ---------------------------------------------------------------

    def _remaining(self) -> list[Left]:
        named = {e.target for e in self.entries if e.status in (MISSHAPEN, UNFIT)}
        return [self._left(name) for name in self.state if name not in self.new and name not in named]

    def _left(self, name: str) -> Left:
        if name in self.ignored_targets:
            return Left(name, "left", "ignored as asked: the network's own initial value")
        if self.drops_norms and _is_norm_name(name):
            return Left(name, "left", "norm_mismatch is 'reinit': the network's own initial value")
        if name.startswith(self.source.classifier) and self.classifier_reason is not None:
            return Left(name, "left", f"a fresh classifier, since {self.classifier_reason}")
        if name.startswith(self.source.classifier) and not self.source.has_classifier:
            return Left(name, "left", "a fresh classifier: the file has none")
        if NONLOCAL in name and self.source.nonlocal_blocks is None:
            return Left(name, "left", "of a fresh non-local block: the file has none")
        if name.endswith((".norm.weight", ".norm.bias")) and NONLOCAL in name and self.has_bare_blocks:
            self.new[name] = torch.full_like(self.state[name], float(name.endswith("weight")), device="cpu")
            return Left(name, "set", "to change nothing: the file's non-local blocks have no norm")
        if name.endswith("num_batches_tracked"):
            own = self.arguments["norm"] == "batch_renorm"
            return Left(name, "left", _OWN_STEPS if own else "a count that nothing but a cumulative average reads")
        if self.is_affine and name.endswith(("running_mean", "running_var")):
            # With mean 0 and variance 1 - eps a Batch Norm is its scale and shift alone.
            value, words = (0.0, "0") if name.endswith("mean") else (1.0 - float(self.arguments["norm_eps"]), "1 - eps")
            self.new[name] = torch.full_like(self.state[name], value, device="cpu")
            return Left(name, "set", f"to {words}: the file's norms are a scale and a shift alone")
        return Left(name, "missing", "is missing in the file")

    @property
    def is_affine(self) -> bool:
        """Whether the file's norms are taken as Batch Norms that were folded into scale and shift."""
        folded = self.source.affine or self.source.norm == UNKNOWN
        return folded and norm_family(self.arguments["norm"]) == "batch"

    @property
    def has_bare_blocks(self) -> bool:
        """Whether no non-local block of the file has a norm, as in Non-local's networks with folded norms."""
        has_norms = any(NONLOCAL in ours and ".norm." in ours for ours in self.source.names.values())
        return self.source.affine and not has_norms

    def _notes(self) -> list[str]:
        source, net, notes = self.source, self.arguments, []
        if source.norm == UNKNOWN:
            others = "no norm's" if net["norm"] == "none" else "Group Norm's"
            taken = "Batch Norms folded into them" if self.is_affine else others
            notes.append(
                f"the file holds scale and shift of its norms alone; they are taken as {taken}, as the network has"
            )
        if self.is_affine and net["norm"] != "frozen_batch":
            notes.append(
                "its Batch Norms are folded into scale and shift: evaluation gives the zoo's numbers, but training "
                "would normalize by the batch's statistics, which the file's weights have not seen"
            )
        elif source.groups is None and norm_family(source.norm) == "group" and not (self.is_affine or self.drops_norms):
            rule = rule_in_words(group_rule(net))
            notes.append(f"the file does not say the groups of its norms; the network has {rule}")
        if source.layout is None and not source.is_2d and source.network == I3D_NETWORK:
            hint = "'nonlocal' for Non-local's models, 'slowfast' for SlowFast's zoo; "
            zoos = hint if source.format == "caffe2" else ""
            notes.append(f"the file does not say its layout: {zoos}the network has {net['layout']!r}")
        if source.nonlocal_blocks == UNKNOWN:
            notes.append(
                "the file does not say how its non-local blocks weigh positions: the network has "
                f"{net['nonlocal_blocks']!r}"
            )
        unused = [p for p in self.ignore if p not in self.used_patterns]
        if unused:
            notes.append(f"`ignore` names nothing in the file with {', '.join(unused)}")
        return notes


def _norm_difference(source: Source, net: Mapping[str, Any]) -> str | None:
    here = str(net["norm"])
    is_bare = source.norm == "group" and source.groups is None  # scale and shift, of whatever keeps no statistics
    if source.norm == UNKNOWN or (here == "none" and (source.affine or is_bare)):
        return None  # what was folded into scale and shift is all that a net without norms has
    if norm_family(source.norm) != norm_family(here):
        return f"its norms are {source.norm!r}, the network's {here!r}"
    rule = group_rule(net)
    if source.groups is not None and source.groups != rule:
        return f"its norms have {rule_in_words(source.groups)}, the network's {rule_in_words(rule)}"
    return None


def _is_norm_name(name: str) -> bool:
    # X3D has squeeze-and-excitation as norm_b.1, beside the norm itself.
    return re.search(r"\.(norm|norm_[ac]|norm_b\.0|norm_b(?!\.1)|branch1_norm|pre_norm)\.", name) is not None


def _unfit(tensor: torch.Tensor, *, is_count: bool) -> str | None:
    if tensor.is_meta:
        return "has a shape and no values (it was saved on the meta device)"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is sparse or quantized. Save dense floating-point tensors"
    if is_count:
        return None if tensor.numel() == 1 else f"is a count, but has shape {tuple(tensor.shape)}"
    return None if tensor.is_floating_point() else f"is {tensor.dtype}, not floating point"


def _all_finite(tensor: torch.Tensor) -> bool:
    # A sum of finite numbers may overflow, but one with a NaN or an infinity is never finite: it is cheaper to look at.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _inflate(weight_OIHW: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(O, I, H, W) -> (O, I, T, H, W): the weight of every frame is the 2-D weight divided by their number.

    On a video whose frames are all the same picture the result then gives the 2-D convolution's output (but for the
    frames that padding in time reaches). Source: Carreira & Zisserman 2017 (arXiv:1705.07750), section 2.2;
    video-nonlocal-net's initialization.
    """
    weight_OITHW = weight_OIHW.unsqueeze(2)
    if num_frames == 1:
        return weight_OITHW
    return (weight_OITHW / num_frames).expand(-1, -1, num_frames, -1, -1).contiguous()


def _without_ones(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """(400, 2048, 1, 1, 1) -> (400, 2048)."""
    return shape[:rank] if all(n == 1 for n in shape[rank:]) else shape


def _error(source: Source, report: LoadReport, wrong: str | None) -> CheckpointError:
    if wrong is not None:
        return CheckpointError(shown(f"{source.path}: {wrong}"), report=report)
    problems = report.problems
    lines = [f"{source.path}: does not fit the network ({source.format})", *(f"  {p}" for p in problems[:_LISTED])]
    if len(problems) > _LISTED:
        lines.append(f"  and {len(problems) - _LISTED} more")
    lines.append("Check depth, norm and format; names in the file that should be left out go into `ignore`.")
    return CheckpointError("\n".join(map(shown, lines)), report=report)
