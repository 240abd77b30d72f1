"""What a weight file is: its zoo, its tensors under our names, and what its network was.

It follows from the names and shapes of the tensors and from what the file says of itself. A checkpoint of this package
says all of it; what other zoos leave unsaid is in `zoos`, which is imported for their files alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from video_gn.errors import CheckpointError
from video_gn.models.tables import BATCH_FAMILY, DEFAULT_NUM_GROUPS, DEPTHS, I3D_NETWORK, OWN_NETWORK
from video_gn.weights.about import (
    CLASSIFIER,
    HUB_CLASSIFIER,
    KEY,
    OWN_PREFIX,
    STAGES,
    UNKNOWN,
    VIDEO_INPUT,
    Preprocessing,
    network_of,
    own_error,
    read_about,
)
from video_gn.weights.files import FileContent

if TYPE_CHECKING:
    from video_gn.weights.keymaps import Keymap

# The name of this package's own format; `keymaps.FORMATS` has all of them.
OWN = "video_gn"

# Where the zoos keep the network's tensors in a file.
_SECTIONS = ("model_state", "state_dict", "model_state_dict", "model", "net", "blobs")
# What trainers put before a network's own names.
_WRAPPERS = re.compile(r"^(?:(?:module|model|net|_orig_mod)\.)+")

_MOST_NAME = 1000  # characters


@dataclass(frozen=True)
class Source:
    """A weight file's network.

    Args:
        path: File it was read from.
        container: As in `FileContent`.
        format: One of `keymaps.FORMATS`.
        tensors: Name in the file -> tensor, of everything that may be a weight, in the file's order.
        names: Name in the file -> our name, of those that the zoo's table knows.
        ignored: Name in the file -> why it is no weight.
        outside: What the file holds beside the network's tensors: name -> in words.
        foreign: Objects of other libraries, which were not built.
        norm: Kind, as far as it is known: "batch" or "group" if only the family is; `UNKNOWN` for scale and shift
            alone, of Group Norm or of folded Batch Norm.
        groups: How its norms divide channels, as `group_rule` says it; None if that is not known.
        affine: Whether Batch Norm is folded into a scale and a shift, without statistics.
        layout: None if it is not known, or any will do.
        blocks: Number of blocks of res2, res3, res4, res5.
        width: Channels of the stem; None without a stem.
        num_classes: None without a classifier.
        is_2d: Whether it is an image network, to be inflated.
        bgr: Whether its input is BGR.
        preprocessing: The zoo's, for RGB input.
        classes: Names by number; empty if they are not known.
        clip: Frames and stride that it was trained with; None if they are not known.
        nonlocal_blocks: Weighting of its non-local blocks, `UNKNOWN` if that is not known; None without such blocks.
        about: What a checkpoint of ours says of itself; empty for others.
        is_named: Whether a person has said the format.
        network: A key of `models.NETWORKS`.
    """

    path: str
    container: str
    format: str
    tensors: dict[str, torch.Tensor]
    names: dict[str, str]
    ignored: dict[str, str]
    outside: dict[str, str]
    foreign: tuple[str, ...]
    norm: str
    groups: tuple[str, int] | None
    affine: bool
    layout: str | None
    blocks: tuple[int, ...]
    width: int | None
    num_classes: int | None
    is_2d: bool
    bgr: bool
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    clip: tuple[int, int] | None = None
    nonlocal_blocks: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    is_named: bool = False
    network: str = I3D_NETWORK

    @property
    def depth(self) -> int | None:
        """50, 101, 152, or None for other numbers of blocks."""
        return next((depth for depth, blocks in DEPTHS.items() if blocks == self.blocks), None)

    @property
    def has_classifier(self) -> bool:
        """Whether any of its tensors is the classifier's."""
        return any(ours.startswith(self.classifier) for ours in self.names.values())

    @property
    def classifier(self) -> str:
        """What our names of the classifier's tensors begin with."""
        return CLASSIFIER if self.network == I3D_NETWORK else HUB_CLASSIFIER


def recognize(content: FileContent, *, format: str = "auto", takes_own: bool = False) -> Source:
    """Find out what a file's network is; its tensors may be on the meta device. "auto" recognizes the format.

    Raises:
        CheckpointError: if there are no tensors, or names of no zoo; for somebody's own network unless `takes_own`.
        ValueError: for an unknown format.
    """
    if format not in ("auto", OWN):
        from video_gn.weights.keymaps import FORMATS

        if format not in FORMATS:
            raise ValueError(f"format must be auto, {', '.join(FORMATS)}, got {format!r}. Choose one of these.")
    state, outside = _find_state(content)
    about = read_about(content) if format in ("auto", OWN) else {}
    if format == OWN and not about:
        raise CheckpointError(f"{content.path}: format is {OWN!r} but the file has no key {KEY!r}. Use format 'auto'.")
    if about and network_of(about["net"]) == OWN_NETWORK:
        if not takes_own:
            raise own_error(content.path, about)
        return _own_source(content, state, outside, about)
    bare = {key: _WRAPPERS.sub("", key) for key in state}
    if about:
        network = network_of(about["net"])
    else:
        from video_gn.weights.zoos import hub_network

        network = hub_network({bare[key]: value for key, value in state.items()})
    keymap = None
    if network != I3D_NETWORK:
        pass  # its names are ours
    elif not about or not all(name.startswith("blocks.") for name in bare.values()):
        from video_gn.weights.zoos import choose_keymap

        keymap = choose_keymap(content.path, bare, "auto" if about else format)
    tensors, names, ignored = _name_tensors(state, bare, keymap, outside)
    if not names:
        from video_gn.weights.zoos import not_known

        raise CheckpointError(not_known(content.path, state, format))
    outside.pop(KEY, None)
    shapes = {ours: tuple(tensors[key].shape) for key, ours in names.items()}
    convs = [s for n, s in shapes.items() if ".conv" in n or "branch1_conv" in n]
    is_2d = bool(convs) and all(len(s) == 4 for s in convs)
    has_statistics = any(n.endswith(("running_mean", "running_var")) for n in shapes)
    zoo = OWN if about else "pytorchvideo" if keymap is None else keymap.name
    if about:
        described = _own_fields(about)
    else:
        from video_gn.weights.zoos import habits, nonlocal_weighting

        described = habits(content, zoo, has_statistics=has_statistics, is_2d=is_2d)
        if any(".nonlocal_blocks." in name for name in shapes):
            described["nonlocal_blocks"] = nonlocal_weighting(content, zoo, affine=described["affine"])
    stem, head = shapes.get("blocks.0.conv.weight"), shapes.get("blocks.6.proj.weight")
    if network != I3D_NETWORK:
        from video_gn.weights.zoos import hub_fields

        described |= hub_fields(network, shapes, is_own=bool(about))
        head = shapes.get(f"{HUB_CLASSIFIER}weight")
    return Source(
        path=content.path,
        container=content.container,
        format=zoo,
        tensors=tensors,
        names=names,
        ignored=ignored,
        outside=outside,
        foreign=content.foreign,
        **{
            "blocks": tuple(_count_blocks(shapes, stage) for stage in STAGES),
            "width": stem[0] if stem else None,
            **described,
            **({"layout": None} if is_2d else {}),
        },
        num_classes=head[0] if head else None,
        is_2d=is_2d,
        about=about,
        is_named=format != "auto",
    )


def _own_source(
    content: FileContent, state: Mapping[str, Any], outside: dict[str, str], about: dict[str, Any]
) -> Source:
    """Somebody's own network: tensors under the names of its own module, and what its checkpoint says."""
    names = {key: key if content.metadata else key.removeprefix(OWN_PREFIX) for key in state}
    tensors, names, _ = _name_tensors(state, names, None, outside)
    outside.pop(KEY, None)
    return Source(
        path=content.path, container=content.container, format=OWN, tensors=tensors, names=names, ignored={},
        outside=outside, foreign=content.foreign, blocks=(), width=None, is_2d=False,
        num_classes=len(about.get("classes", ())) or None, about=about, network=OWN_NETWORK, **_own_fields(about),
    )  # fmt: skip


def _name_tensors(
    state: Mapping[str, Any], bare: Mapping[str, str], keymap: Keymap | None, outside: dict[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, str]]:
    """The fields tensors, names and ignored of a `Source`; adds what is no tensor to `outside`."""
    tensors, names, ignored = {}, {}, {}
    for key, value in state.items():
        why = None if keymap is None else keymap.why_ignored(bare[key])
        if why is not None:
            ignored[key] = why
        elif isinstance(value, torch.Tensor):
            tensors[key] = value
            ours = bare[key] if keymap is None else keymap.to_ours(bare[key])
            if ours is not None:
                names[key] = ours
        else:
            outside[f"{key} (among the tensors)" if key in outside else key] = _in_words(value)
    return tensors, names, ignored


def _own_fields(about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Source` that a checkpoint of ours tells; for other files `zoos.habits` has them."""
    net = about["net"]
    has_input = about.get("mean") and about.get("std")
    return {
        "norm": net.get("norm", UNKNOWN),  # somebody's own network does not say
        "groups": group_rule(net),
        "affine": False,
        "layout": net.get("layout"),
        "bgr": False,
        "preprocessing": Preprocessing(tuple(about["mean"]), tuple(about["std"])) if has_input else VIDEO_INPUT,
        "classes": tuple(about.get("classes") or ()),
        "nonlocal_blocks": net.get("nonlocal_blocks"),
    }


def norm_family(kind: str) -> str:
    """What weights of a kind of norm fit: "batch" for those with statistics, "none", or "group" for all others."""
    if kind in BATCH_FAMILY:
        return "batch"
    return "none" if kind == "none" else "group"


def group_rule(net: Mapping[str, Any]) -> tuple[str, int] | None:
    """How the norms of a network with these arguments divide the channels of each layer.

    ("groups", G) or ("channels", C/G); None for kinds that pool over samples, and for none.
    """
    kind = net.get("norm")
    if kind == "layer":
        return "groups", 1
    if kind == "instance":
        return "channels", 1
    if kind != "group":
        return None
    if net.get("channels_per_group"):
        return "channels", int(net["channels_per_group"])
    return "groups", int(net.get("num_groups") or DEFAULT_NUM_GROUPS)


def rule_in_words(rule: tuple[str, int] | None) -> str:
    """What `group_rule` returned, such as "32 groups"."""
    if rule is None:
        return "none"
    what, count = rule
    return f"{count} groups" if what == "groups" else f"{count} channels a group"


def _find_state(content: FileContent) -> tuple[dict[str, Any], dict[str, str]]:
    """The network's tensors, and what lies beside them in words."""
    tree = content.content
    if not isinstance(tree, Mapping):
        raise CheckpointError(
            f"{content.path}: holds {_in_words(tree)}, not a table of tensors. Save the network's state_dict()."
        )
    found = [name for name in _SECTIONS if _has_tensors(tree.get(name))]
    if found:
        section = found[0]
        if len(found) > 1:
            from video_gn.weights.zoos import num_known

            section = max(found, key=lambda name: num_known([_WRAPPERS.sub("", str(key)) for key in tree[name]]))
        outside = {str(k)[:_MOST_NAME]: _in_words(v) for k, v in tree.items() if k != section}
        return _named(content.path, tree[section]), outside
    if not any(isinstance(v, torch.Tensor) for v in tree.values()):
        keys = ", ".join(f"{str(k)[:80]}: {_in_words(v)}" for k, v in list(tree.items())[:5])
        raise CheckpointError(
            f"{content.path}: holds no tensors where weights are looked for (under {', '.join(_SECTIONS)}, or flat); "
            f"it holds {keys or 'nothing'}"
        )
    return _named(content.path, tree), {}


def _named(path: str, table: Mapping[Any, Any]) -> dict[str, Any]:
    named = {str(key): value for key, value in table.items()}
    longest = max(named, key=len)
    if len(longest) > _MOST_NAME:
        raise CheckpointError(
            f"{path}: a tensor's name must have at most {_MOST_NAME} characters, got {len(longest)}: {longest[:40]!r}"
        )
    return named


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values())


def _count_blocks(shapes: Mapping[str, Sequence[int]], stage: str) -> int:
    numbers = [int(m[1]) for n in shapes if (m := re.match(rf"blocks\.{stage}\.res_blocks\.(\d+)\.", n))]
    return max(numbers, default=-1) + 1


def _in_words(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping | list | tuple):
        count = _count_tensors(value)
        return f"{len(value)} entries" + (f" with {count} tensors" if count else "")
    return type(value).__name__


def _count_tensors(value: Any) -> int:
    """The tensors in a tree, those of a part that it holds more than once counted once."""
    seen: set[int] = set()

    def count(node: Any) -> int:
        if isinstance(node, torch.Tensor):
            return 1
        if not isinstance(node, Mapping | list | tuple) or id(node) in seen:
            return 0
        seen.add(id(node))
        return sum(map(count, node.values() if isinstance(node, Mapping) else node))

    return count(value)
