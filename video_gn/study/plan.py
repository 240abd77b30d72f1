"""Reads a study's file and plans its cells: every combination once, numbered, in an order that compares early."""

from __future__ import annotations

import inspect
import itertools
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from video_gn.damage import read_yaml_text
from video_gn.errors import ConfigError
from video_gn.study.settings import OWN, flatten, parse_words

KEYS = ("base", "norms", "clips", "batch_sizes", "cells", "seeds", "settings", "reference")
_NET = "model.net.init_args."
_CLIP = "data.clip."
# A line that chooses a norm also sets its groups: those of the base might contradict it.
_GROUPS = (f"{_NET}num_groups", f"{_NET}channels_per_group")
# A clip's label that gives its frames and stride, as in the paper's table.
_FRAMES_X_STRIDE = re.compile(r"[0-9]+x[0-9]+")
_OPTIMIZER = "model.optimizer.reference_batch_size"


@dataclass(frozen=True)
class Cell:
    """One training and its test."""

    index: int  # number in the study, from 0
    name: str  # name of its directory, such as "gn_16x2_b4_s0"
    norm: str  # label of its line
    clip: str  # label of its clip: the study's, or its frames and stride, "16x2"
    batch_size: int  # clips of a batch in one process
    column: tuple[str, int]  # its column in the study's table
    seed: int
    settings: Mapping[str, Any]  # flat settings that it adds to the base, without those of the command line
    num_frames: int  # frames of a clip, to estimate its cost
    any_clip: str  # pattern of its name with any clip; "" if the study lists clips


@dataclass(frozen=True)
class Study:
    """A study's plan; norms, columns, seeds and cells are in their order in the file."""

    path: Path
    base_path: Path  # the config that it varies
    base: Mapping[str, Any]  # flat settings of that config
    norms: tuple[str, ...]
    columns: tuple[tuple[str, int], ...]  # (clip label, batch size), as `Cell.column`
    seeds: tuple[int, ...]
    reference: str  # label of the line that others are compared with
    words: tuple[str, ...]  # further settings from the command line, as they were written
    extra: Mapping[str, Any]  # the same as flat settings
    cells: tuple[Cell, ...]  # seed by seed, column by column, line by line

    def resolved(self, cell: Cell) -> dict[str, Any]:
        """All settings of a cell, flat: those of the base, its own, then those of the command line."""
        return {**self.base, **cell.settings, **self.extra}


def read_study(path: str | os.PathLike[str], words: Sequence[str] = ()) -> Study:
    """Read a study's file and check all that can be checked without data.

    `words` are further settings of every cell, `--KEY VALUE`, as of fit.

    Raises:
        ConfigError: for a file that cannot be read, an unknown or missing key, a value that does not fit, a
            setting that is given twice, or a base whose runs would not compare. It names file and key.
    """
    return _Reader(Path(path)).study(words)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses equal keys: PyYAML would silently drop the first, and with it a line of the study."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"key {twice!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(read_yaml_text(path), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings, KEY: VALUE, got {type(content).__name__}")
    return content


class _Reader:
    """Reads the parts of a study's file; errors name the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = _load(path)

    def _error(self, key: str, rule: str, value: Any, advice: str = "") -> ConfigError:
        return ConfigError(f"{self.path}: {key} must be {rule}, got {value!r}. {advice}".rstrip())

    def study(self, words: Sequence[str]) -> Study:
        for key in self.content:
            if key not in KEYS:
                raise ConfigError(f"{self.path}: no key {key!r} in a study; there are {', '.join(KEYS)}")
        base = self.content.get("base")
        if not isinstance(base, str):
            raise self._error("base", "the path of a config of fit, relative to this file", base)
        base_path = Path(os.path.normpath(self.path.parent / base))
        base_flat = flatten(_load(base_path))
        norms = self._norms(str(base_flat.get("model.net.class_path", "")))
        clips = self._clips()
        columns = self._columns(clips)
        seeds = self._seeds()
        common = self._settings("settings", self.content.get("settings") or {})
        extra = parse_words(words, source="further settings")
        varied = {key for part in (norms, clips, seeds) for line in part.values() for key in line}
        for source, given in ((f"{self.path}: settings", common), ("the command line", extra)):
            self._refuse(source, given, varied)
        clip_keys = {key for line in clips.values() for key in line}
        norm_keys = {key for line in norms.values() for key in line}
        for seed, given in seeds.items():
            self._refuse(f"{self.path}: seeds.{seed}", given, clip_keys | norm_keys)
        reference = self.content.get("reference", next(iter(norms)))
        if reference not in norms:
            raise self._error("reference", f"one of the norms {', '.join(norms)}", reference)
        cells = self._cells((base_flat, common, extra), norms=norms, clips=clips, columns=columns, seeds=seeds)
        study = Study(
            path=self.path, base_path=base_path, base=base_flat, norms=tuple(norms),
            columns=tuple(dict.fromkeys(cell.column for cell in cells)), seeds=tuple(seeds), reference=str(reference),
            words=tuple(words), extra=extra, cells=cells,
        )  # fmt: skip
        _check_comparable(study)
        return study

    # ---- the parts ---------------------------------------------------------------------------

    def _mapping(self, key: str, value: Any, what: str) -> Mapping[Any, Any]:
        if not isinstance(value, Mapping) or not value:
            raise self._error(key, what, value)
        return value

    def _settings(self, key: str, value: Any, prefix: str = "") -> dict[str, Any]:
        """Settings of a line: a plain name is one under `prefix`, a dotted one is a full name."""
        if not isinstance(value, Mapping):
            raise self._error(key, "settings, KEY: VALUE", value)
        flat = flatten({name if "." in str(name) else f"{prefix}{name}": v for name, v in value.items()})
        for name in flat:
            if name in OWN:
                raise ConfigError(f"{self.path}: {key}.{name} is set by the study itself. Take it out.")
        return flat

    def _norms(self, class_path: str) -> dict[str, dict[str, Any]]:
        from video_gn.models import NORMS, i3d

        given = self._mapping("norms", self.content.get("norms"), "lines LABEL: {norm: ...}, at least one")
        known = inspect.signature(i3d).parameters
        lines: dict[str, dict[str, Any]] = {}
        for label, value in given.items():
            key = f"norms.{label}"
            line = self._settings(key, value, _NET)
            norm = line.get(f"{_NET}norm")
            if norm not in NORMS:
                raise self._error(f"{key}.norm", f"one of {', '.join(sorted(NORMS))}", norm)
            for name in line:
                short = name.removeprefix(_NET)
                if short != name and short not in known and class_path in ("", "video_gn.models.i3d"):
                    raise ConfigError(f"{self.path}: {key}: the net has no setting {short!r}")
            lines[str(label)] = {**dict.fromkeys(_GROUPS), **line}
        return lines

    def _clips(self) -> dict[str, dict[str, Any]]:
        """Settings of each clip that the study lists; of the label "" if it lists none."""
        from video_gn.data.dataset import ClipConfig

        known = [field.name for field in fields(ClipConfig)]
        given = self.content.get("clips")
        if given is None:
            cells = self.content.get("cells")  # they may name the clip of the other settings
            named = [str(c.get("clip")) for c in cells if isinstance(c, Mapping)] if isinstance(cells, list) else []
            return {label: {} for label in named if _FRAMES_X_STRIDE.fullmatch(label)} or {"": {}}
        clips = {}
        what = "lines LABEL: {num_frames: ..., stride: ...}, at least one"
        for label, value in self._mapping("clips", given, what).items():
            line = self._settings(f"clips.{label}", value, _CLIP)
            for name, number in line.items():
                short = name.removeprefix(_CLIP)
                if short != name and short not in known:
                    raise ConfigError(
                        f"{self.path}: clips.{label}: a clip has no setting {short!r}; there are {', '.join(known)}"
                    )
                if short in ("num_frames", "stride") and not _is_count(number):
                    raise self._error(f"clips.{label}.{short}", "a whole number of at least 1", number)
            clips[str(label)] = line
        return clips

    def _columns(self, clips: Mapping[str, Any]) -> list[tuple[str, int]]:
        cells, sizes = self.content.get("cells"), self.content.get("batch_sizes")
        if cells is None:
            if not isinstance(sizes, list) or not sizes or not all(_is_count(size) for size in sizes):
                raise self._error("batch_sizes", "a list of whole numbers, at least one", sizes)
            columns = list(itertools.product(clips, sizes))
        else:
            if sizes is not None:
                raise self._error("batch_sizes", "left out if cells are listed", sizes)
            if not isinstance(cells, list) or not cells:
                raise self._error("cells", "a list of {clip: LABEL, batch_size: N}, at least one", cells)
            columns = []
            for number, cell in enumerate(cells):
                key = f"cells[{number}]"
                if not isinstance(cell, Mapping) or not set(cell) <= {"clip", "batch_size"}:
                    raise self._error(key, "{clip: LABEL, batch_size: N}", cell)
                clip = cell.get("clip", next(iter(clips)) if len(clips) == 1 else None)
                if clip not in clips:
                    raise self._error(f"{key}.clip", f"one of {', '.join(filter(None, clips)) or 'the clips'}", clip)
                if not _is_count(cell.get("batch_size")):
                    raise self._error(f"{key}.batch_size", "a whole number of at least 1", cell.get("batch_size"))
                columns.append((str(clip), int(cell["batch_size"])))
        for number, column in enumerate(columns):
            if column in columns[:number]:
                where = "batch_sizes" if cells is None else "cells"
                raise self._error(where, "different from each other", column)
        return columns

    def _seeds(self) -> dict[int, dict[str, Any]]:
        given = self.content.get("seeds", {0: {}})
        if isinstance(given, list) and len(set(map(str, given))) == len(given):
            given = dict.fromkeys(given)
        seeds = {}
        for seed, value in self._mapping("seeds", given, "SEED: {settings}, or a list of seeds, at least one").items():
            if not _is_count(seed, least=0):
                raise self._error("seeds", "whole numbers of at least 0", seed)
            seeds[int(seed)] = self._settings(f"seeds.{seed}", value or {})
        return seeds

    @staticmethod
    def _refuse(source: str, given: Mapping[str, Any], varied: set[str]) -> None:
        for key in given:
            name = key.removesuffix("+")
            if any(own == name or own.startswith(f"{name}.") for own in {*varied, *OWN}):
                raise ConfigError(f"{source}: {key} is varied or set by the study itself. Take it out.")

    # ---- the plan ----------------------------------------------------------------------------

    def _cells(
        self,
        shared: tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]],
        *,
        norms: Mapping[str, dict[str, Any]],
        clips: Mapping[str, dict[str, Any]],
        columns: Sequence[tuple[str, int]],
        seeds: Mapping[int, dict[str, Any]],
    ) -> tuple[Cell, ...]:
        """Seed by seed, column by column, line by line: cells that are compared finish one after another.

        `shared` are the settings of the base, of the study's file and of the command line.
        """
        base, common, extra = shared
        cells: list[Cell] = []
        for (seed, of_seed), (clip, size), (norm, line) in itertools.product(seeds.items(), columns, norms.items()):
            settings = {**common, **of_seed, **line, **clips[clip], "data.batch_size": size, "seed_everything": seed}
            try:
                frames, stride = clip_of({**base, **settings, **extra})
            except ConfigError as error:
                raise ConfigError(f"{self.path}, norm {norm}, seed {seed}: {error}") from error
            label = clip or f"{frames}x{stride}"
            if _FRAMES_X_STRIDE.fullmatch(label) and label != f"{frames}x{stride}":
                if "clips" not in self.content:
                    raise self._error(f"cells[{columns.index((clip, size))}].clip", f"one of {frames}x{stride}", clip)
                what = f"labelled {frames}x{stride}, as its clips are with norm {norm} and seed {seed}"
                raise self._error(f"clips.{clip}", what, clip, "Rename it, or set both num_frames and stride there.")
            name, pattern = ("_".join((_slug(norm), part, f"b{size}", f"s{seed}")) for part in (_slug(label), "*"))
            same = next((cell for cell in cells if cell.name == name), None)
            if same is not None:
                first, second = (same.norm, norm) if same.norm != norm else (same.clip, clip)
                raise ConfigError(f"{self.path}: {first!r} and {second!r} give the same directory {name}. Rename one.")
            any_clip = "" if clip else pattern
            cells.append(Cell(len(cells), name, norm, label, size, (clip, size), seed, settings, frames, any_clip))
        # Without a list of clips all cells of a batch size are one column, also if a line or a seed has its own clip.
        clip = " or ".join(dict.fromkeys(cell.clip for cell in cells))
        return tuple(replace(cell, column=(cell.column[0] or clip, cell.batch_size)) for cell in cells)


def clip_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Frames and stride of a clip, from all flat settings of a run.

    Raises:
        ConfigError: for a clip that is read from another file, or numbers that are none.
    """
    from video_gn.data.dataset import ClipConfig

    other_file, clip = settings.get(_CLIP.rstrip(".")), ClipConfig()
    if other_file:
        raise ConfigError(f"data.clip must be settings, KEY: VALUE, got {other_file!r}. Write data.clip.num_frames.")
    numbers = [settings.get(f"{_CLIP}{name}", getattr(clip, name)) for name in ("num_frames", "stride")]
    if not all(map(_is_count, numbers)):
        raise ConfigError(f"data.clip.num_frames and .stride must be whole numbers of at least 1, got {numbers}.")
    return numbers[0], numbers[1]


def _check_comparable(study: Study) -> None:
    """Check that every batch size has the same epochs and the linear rule, so that accuracies can be compared."""
    if len({size for _, size in study.columns}) == 1:
        return
    for cell in study.cells:
        settings, where = study.resolved(cell), f"{study.path}: {cell.name}"
        if settings.get(_OPTIMIZER, 64) is None:
            raise ConfigError(
                f"{where}: {_OPTIMIZER} must be the batch size at which lr holds, got None. With several batch sizes "
                f"the learning rate follows the batch size; set it in {study.base_path} or under settings."
            )
        if settings.get("trainer.max_steps", -1) != -1:
            raise ConfigError(
                f"{where}: trainer.max_steps must be -1, got {settings['trainer.max_steps']!r}. With several batch "
                "sizes each trains for the same number of epochs: set trainer.max_epochs."
            )
        in_steps = settings.get("model.schedule.unit", "epoch") == "step"
        if in_steps and (settings.get("model.schedule.warmup") or settings.get("model.schedule.milestones")):
            raise ConfigError(
                f"{where}: model.schedule.unit must be 'epoch', got 'step'. With several batch sizes the schedule "
                "follows the epochs."
            )


def _is_count(value: Any, *, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "x"
