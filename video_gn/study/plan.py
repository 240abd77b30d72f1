"""Plans a study's cells: every combination once, numbered, in an order that compares early; and its pre-trainings."""

from __future__ import annotations

import inspect
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from video_gn.errors import ConfigError
from video_gn.study.reading import FRAMES_X_STRIDE, StudyFile, is_count, load
from video_gn.study.settings import (
    ACCUMULATED,
    BATCH_SIZE,
    CLIP,
    FREE,
    MACHINE,
    NET,
    OUT,
    TRAIN,
    WEIGHTS,
    as_word,
    flatten,
    parse_words,
)

_OPTIMIZER = "model.optimizer.reference_batch_size"
_NETWORK = ("model.net", "model.net.class_path")
# Arguments of a network that the shapes of its weights follow from.
_SHAPES = ("depth", "layout", "width", "in_channels")
CELLS, PRETRAIN, SYNTHETIC = "cells", "pretrain", "synthetic"  # directories of a study


@dataclass(frozen=True)
class Cell:
    """One training and its test: a cell of the table, or a pre-training that cells start from."""

    index: int  # number in the study, from 0
    name: str  # name of its directory, such as "gn_16x2_b4_s0"; of a pre-training "gn_s0"
    norm: str  # label of its line
    clip: str  # label of its clip: the study's, or its frames and stride, "16x2"
    batch_size: int  # clips of a batch in one process
    column: tuple[str, int]  # its column in the study's table
    seed: int
    settings: Mapping[str, Any]  # flat settings that it adds to the base, without those of the command line
    num_frames: int  # frames of a clip, to estimate its cost
    any_clip: str = ""  # pattern of its name with any clip; "" if the study lists clips
    folder: str = CELLS  # directory of its directory, CELLS or PRETRAIN
    start: Cell | None = None  # the pre-training whose last checkpoint it starts from
    # What else its result follows from, like settings: options of synthetic videos, settings of the pre-training.
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"pre-training {self.name}" if self.folder == PRETRAIN else f"cell {self.index}, {self.name},"


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
    num_cells: int  # of the whole study, of which these may be a part
    optimizer_batch: int | None = None  # clips of one process in a step, if the same in all cells
    synthetic: Mapping[str, int] | None = None  # options of `video-gn data synth`
    pretrain: Study | None = None  # the pre-trainings, each a cell of this

    def resolved(self, cell: Cell) -> dict[str, Any]:
        """All settings of a cell, flat: those of the base, its own, then those of the command line."""
        return {**self.base, **cell.settings, **self.extra}

    def of_size(self, size: int) -> str:
        """Head of a column: "batch 8", or "statistics of 8 of 16" if the other clips of a step only add gradients."""
        return f"batch {size}" if self.optimizer_batch is None else f"statistics of {size} of {self.optimizer_batch}"

    def quick(self) -> Study:
        """The part that says most for its time: the first seed, and the largest and the smallest batch size."""
        sizes = [size for _, size in self.columns]
        columns = tuple(column for column in self.columns if column[1] in (max(sizes), min(sizes)))
        cells = tuple(cell for cell in self.cells if cell.column in columns and cell.seed == self.seeds[0])
        pretrain = self.pretrain
        if pretrain is not None:
            of_seed = tuple(cell for cell in pretrain.cells if cell.seed == self.seeds[0])
            pretrain = replace(pretrain, seeds=self.seeds[:1], cells=of_seed)
        return replace(self, columns=columns, seeds=self.seeds[:1], cells=cells, pretrain=pretrain)


def read_study(path: str | os.PathLike[str], words: Sequence[str] = ()) -> Study:
    """Read a study's file and check all that can be checked without data.

    `words` are further settings of every cell, `--KEY VALUE`, as of fit; those about the machine (`MACHINE`) are also
    settings of every pre-training.

    Raises:
        ConfigError: for a file that cannot be read, an unknown or missing key, a value that does not fit, a
            setting that is given twice, a base whose runs would not compare, or a pre-training whose weights would
            not fit. It names file and key.
    """
    file = StudyFile(Path(path))
    base_path = file.base_path("base", file.content.get("base"))
    base = flatten(load(base_path))
    common = file.settings("settings", file.content.get("settings") or {})
    extra = parse_words(words, source="further settings")
    named = (settings.get(key) for settings in (extra, common, base) for key in _NETWORK)
    norms = file.norms(str(next(filter(None, named), "video_gn.models.i3d")))
    clips = file.clips()
    columns = file.columns(clips)
    seeds = file.seeds()
    varied = {key for part in (norms, clips, seeds) for line in part.values() for key in line}
    file.refuse(f"{file.path}: settings", common, varied, own=file.own)
    file.refuse("the command line", extra, varied, own=[key for key in file.own if key != TRAIN])
    not_of_seeds = {key for part in (norms, clips) for line in part.values() for key in line}
    for seed, given in seeds.items():
        file.refuse(f"{file.path}: seeds.{seed}", given, not_of_seeds, own=file.own)
    reference = file.content.get("reference", next(iter(norms)))
    if reference not in norms:
        raise file.error("reference", f"one of the norms {', '.join(norms)}", reference)
    plan = _Plan(file, base_path, base, extra, norms=norms, seeds=seeds)
    cells = plan.cells(common, clips=clips, columns=columns)
    study = Study(
        path=file.path, base_path=base_path, base=base, norms=tuple(norms),
        columns=tuple(dict.fromkeys(cell.column for cell in cells)), seeds=tuple(seeds), reference=str(reference),
        words=tuple(words), extra=extra, cells=cells, num_cells=len(cells),
        optimizer_batch=file.optimizer_batch(columns), synthetic=plan.synthetic, pretrain=plan.pretrain,
    )  # fmt: skip
    _check_comparable(study)
    for cell in cells:
        _check_start(study, cell)
    return study


class _Plan:
    """Combines the parts of a study's file."""

    def __init__(
        self,
        file: StudyFile,
        base_path: Path,
        base: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        norms: Mapping[str, dict[str, Any]],
        seeds: Mapping[int, dict[str, Any]],
    ) -> None:
        self.file, self.base, self.extra, self.norms, self.seeds = file, base, extra, norms, seeds
        self.synthetic = file.synthetic()
        self.starts = file.starts()  # line -> the line whose pre-training it starts from
        self.pretrain = self._pretrain() if file.pretrains else None

    def _videos(self, is_wanted: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The training videos that the study makes itself, and their options as an origin; nothing if not wanted."""
        if self.synthetic is None or not is_wanted:
            return {}, {}
        return {TRAIN: f"{OUT}{SYNTHETIC}"}, {f"{SYNTHETIC}.{key}": value for key, value in self.synthetic.items()}

    def _pretrain(self) -> Study:
        """The pre-trainings: a training for each line and seed, on one recipe, without folds and batch sizes."""
        file = self.file
        base_path, common = file.pretrain({key for line in self.norms.values() for key in line})
        base = flatten(load(base_path))
        extra = {key: value for key, value in self.extra.items() if key.startswith(MACHINE)}
        videos, origin = self._videos(TRAIN not in common)
        norms = tuple(dict.fromkeys(self.starts.values()))
        cells: list[Cell] = []
        for seed, norm in itertools.product(self.seeds, norms):
            settings = {**self.norms[norm], **common, **videos, "seed_everything": seed}
            resolved = {**base, **settings, **extra}
            frames, stride = clip_of(resolved)
            name, label, size = f"{_slug(norm)}_s{seed}", f"{frames}x{stride}", resolved.get(BATCH_SIZE, 0)
            cells.append(
                Cell(
                    len(cells), name, norm, label, size, (label, size), seed, settings, frames, folder=PRETRAIN,
                    origin=origin,
                )
            )  # fmt: skip
        return Study(
            path=file.path, base_path=base_path, base=base, norms=norms, columns=(), seeds=tuple(self.seeds),
            reference=norms[0], words=tuple(as_word(key, value) for key, value in extra.items()), extra=extra,
            cells=tuple(cells), num_cells=len(cells), synthetic=self.synthetic,
        )  # fmt: skip

    def _start(self, norm: str, seed: int) -> tuple[Cell | None, dict[str, Any], dict[str, Any]]:
        """The pre-training of a cell, the setting that takes its weights, and its settings as an origin."""
        if self.pretrain is None:
            return None, {}, {}
        cell = next(c for c in self.pretrain.cells if (c.norm, c.seed) == (self.starts[norm], seed))
        recipe = {**self.pretrain.base, **cell.settings, **cell.origin}
        origin = {f"{PRETRAIN}.{key}": value for key, value in recipe.items() if not key.startswith(FREE)}
        return cell, {WEIGHTS: f"{OUT}{PRETRAIN}/{cell.name}/checkpoints/last.ckpt"}, origin

    def cells(
        self, common: Mapping[str, Any], *, clips: Mapping[str, dict[str, Any]], columns: Sequence[tuple[str, int]]
    ) -> tuple[Cell, ...]:
        """Seed by seed, column by column, line by line: cells that are compared finish one after another."""
        file = self.file
        step = file.optimizer_batch(columns)
        videos, of_videos = self._videos(not file.pretrains and TRAIN not in self.extra)
        cells: list[Cell] = []
        lines = itertools.product(self.seeds.items(), columns, self.norms.items())
        for (seed, of_seed), (clip, size), (norm, line) in lines:
            start, weights, of_start = self._start(norm, seed)
            settings = {
                **common, **of_seed, **line, **clips[clip], **videos, **weights,
                BATCH_SIZE: size, **({ACCUMULATED: step // size} if step else {}), "seed_everything": seed,
            }  # fmt: skip
            try:
                frames, stride = clip_of({**self.base, **settings, **self.extra})
            except ConfigError as error:
                raise ConfigError(f"{file.path}, norm {norm}, seed {seed}: {error}") from error
            label = clip or f"{frames}x{stride}"
            if FRAMES_X_STRIDE.fullmatch(label) and label != f"{frames}x{stride}":
                if "clips" not in file.content:
                    raise file.error(f"cells[{columns.index((clip, size))}].clip", f"one of {frames}x{stride}", clip)
                what = f"labelled {frames}x{stride}, as its clips are with norm {norm} and seed {seed}"
                raise file.error(f"clips.{clip}", what, clip, "Rename it, or set both num_frames and stride there.")
            name, pattern = ("_".join((_slug(norm), part, f"b{size}", f"s{seed}")) for part in (_slug(label), "*"))
            same = next((cell for cell in cells if cell.name == name), None)
            if same is not None:
                first, second = (same.norm, norm) if same.norm != norm else (same.clip, clip)
                raise ConfigError(f"{file.path}: {first!r} and {second!r} give the same directory {name}. Rename one.")
            cells.append(
                Cell(
                    len(cells), name, norm, label, size, (clip, size), seed, settings, frames,
                    any_clip="" if clip else pattern, start=start, origin={**of_videos, **of_start},
                )
            )  # fmt: skip
        # Without a list of clips all cells of a batch size are one column, also if a line or a seed has its own clip.
        clip = " or ".join(dict.fromkeys(cell.clip for cell in cells))
        return tuple(replace(cell, column=(cell.column[0] or clip, cell.batch_size)) for cell in cells)


def clip_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Frames and stride of a clip, from all flat settings of a run.

    Raises:
        ConfigError: for a clip that is read from another file, or numbers that are none.
    """
    from video_gn.data.dataset import ClipConfig

    other_file, clip = settings.get(CLIP.rstrip(".")), ClipConfig()
    if other_file:
        raise ConfigError(f"data.clip must be settings, KEY: VALUE, got {other_file!r}. Write data.clip.num_frames.")
    numbers = [settings.get(f"{CLIP}{name}", getattr(clip, name)) for name in ("num_frames", "stride")]
    if not all(map(is_count, numbers)):
        raise ConfigError(f"data.clip.num_frames and .stride must be whole numbers of at least 1, got {numbers}.")
    return numbers[0], numbers[1]


def _check_comparable(study: Study) -> None:
    """Check that every batch size has the same epochs and the linear rule, so that accuracies can be compared."""
    # With one size of a step the rate and the number of steps are the same, whatever they are.
    if len({size for _, size in study.columns}) == 1 or study.optimizer_batch is not None:
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


def _check_start(study: Study, cell: Cell) -> None:
    """Check that the weights of a cell's pre-training fit its network, before hours are spent on them."""
    if cell.start is None or study.pretrain is None:
        return
    from video_gn.models import i3d
    from video_gn.weights.formats import group_rule, norm_family, rule_in_words

    defaults = {name: parameter.default for name, parameter in inspect.signature(i3d).parameters.items()}
    here, there = (
        defaults | {key.removeprefix(NET): value for key, value in settings.items() if key.startswith(NET)}
        for settings in (study.resolved(cell), study.pretrain.resolved(cell.start))
    )
    found = [(f"{name} {there[name]}", f"{name} {here[name]}") for name in _SHAPES if here[name] != there[name]]
    kinds = [(f"norm {net['norm']}", rule_in_words(group_rule(net))) for net in (there, here)]
    if norm_family(here["norm"]) != norm_family(there["norm"]):
        found.append((kinds[0][0], kinds[1][0]))
    elif group_rule(here) != group_rule(there):
        found.append((kinds[0][1], kinds[1][1]))
    if found:
        raise ConfigError(
            f"{study.path}: norms.{cell.norm} must fit the weights of pre-training {cell.start.name}, which has "
            f"{', '.join(a for a, _ in found)}; got {', '.join(b for _, b in found)}. Give the line a pre-training of "
            "its own, or the same network."
        )


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "x"
