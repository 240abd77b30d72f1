"""Parts of a list that several processes share: the part of one, the name of its file, and which are there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from video_gn.errors import ConfigError

SLURM = "slurm"


@dataclass(frozen=True)
class Part:
    """The items at `index`, `index + count`, `index + 2 * count`, ... of a list; 0 <= index < count.

    Parts differ by one item at most, whatever the list's length, which need not be known beforehand.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, place: int) -> bool:
        """Whether the item at a place of the list, counted from 0, belongs to this part."""
        return place % self.count == self.index

    def size(self, total: int) -> int:
        """Number of this part's items in a list of `total`."""
        return (total - self.index + self.count - 1) // self.count

    def path(self, output: Path) -> Path:
        """labels.jsonl -> labels.part-00002-of-00008.jsonl, from 0; a file named "shard", as before, stays."""
        new, old = (
            output.with_name(f"{output.stem}.{word}-{self.index:05d}-of-{self.count:05d}{output.suffix}")
            for word in ("part", "shard")
        )
        return old if old.exists() else new


def parse_part(text: str, environment: Mapping[str, str]) -> Part:
    """Read `I/N`, or `slurm` from the environment's variables."""
    if text == SLURM:
        return slurm_part(environment)
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(
            f"--part must be I/N with I from 0 to N - 1, or {SLURM}, got {text!r}. Write 0/8 for the first of eight, "
            "7/8 for the last."
        )
    return Part(int(match[1]), int(match[2]))


def slurm_part(environment: Mapping[str, str]) -> Part:
    """The place of a task in its array job: `--array=10-31:7` has the parts 0/4 to 3/4.

    The environment has SLURM_ARRAY_TASK_ID, _MIN, _STEP and _COUNT; with _MAX every task notices a list with gaps.

    Raises:
        ConfigError: variables are missing, or do not give the place (`--array=1,5,6`).

    Source: SLURM's manual of sbatch, "Output environment variables".
    """
    advice = "Write the part out, such as --part $SLURM_ARRAY_TASK_ID/8 for --array=0-7."
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "STEP", "COUNT")]
    lacking = [name for name in names if not re.fullmatch("[0-9]+", environment.get(name, ""))]
    if lacking:
        raise ConfigError(
            f"--part {SLURM} must find numbers in {', '.join(names)}, got none in {', '.join(lacking)}. Is this "
            f"a task of an array job? {advice}"
        )
    task, first, step, count = (int(environment[name]) for name in names)
    last = int(environment.get("SLURM_ARRAY_TASK_MAX", first + step * (count - 1)))
    rank, rest = divmod(task - first, step) if step else (-1, 0)
    if rest or not 0 <= rank < count or (last - first) // step + 1 != count:
        raise ConfigError(
            f"--part {SLURM} must have an array of equal steps, got task {task} of {count} from {first} to {last} in "
            f"steps of {step}. {advice}"
        )
    return Part(rank, count)


def find_parts(output: Path) -> list[tuple[Part, Path]]:
    """The parts of an output that exist, in their order."""
    form = re.compile(rf"{re.escape(output.stem)}\.(?:part|shard)-([0-9]+)-of-([0-9]+){re.escape(output.suffix)}")
    if not output.parent.is_dir():
        return []
    matches = [(match, path) for path in output.parent.iterdir() if (match := form.fullmatch(path.name))]
    found = [(Part(int(match[1]), int(match[2])), path) for match, path in matches]
    return sorted(found, key=lambda item: (item[0].count, item[0].index))


def check_parts(output: Path, part: Part, *, beside: str = "") -> None:
    """Refuse to write a part beside those of another division, since they could not be merged.

    This also notices an array job of which only some tasks were submitted again: SLURM then counts these alone.
    `beside` names what lies beside a part's file, for the message.

    Raises:
        ConfigError: naming one of the other parts.
    """
    for other, path in find_parts(output):
        if other.count != part.count:
            raise ConfigError(
                f"--part must be I/{other.count} as in {path.name}, which exists, got {part}. Give that, or remove "
                f"the other parts{beside}, or choose another output."
            )


def missing_parts(merge: str, parts: Sequence[Part]) -> list[Part]:
    """The parts of a division that are not among `parts`, of which there is at least one.

    Raises:
        ConfigError: for parts of several divisions; `merge` names the option and what it merges.
    """
    counts = sorted({part.count for part in parts})
    if len(counts) > 1:
        raise ConfigError(
            f"{merge}: its parts must be of one division, got parts of {' and of '.join(map(str, counts))}. "
            "Remove those of the other divisions."
        )
    there = {part.index for part in parts}
    return [Part(index, counts[0]) for index in range(counts[0]) if index not in there]
