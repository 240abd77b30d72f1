"""What `prepare` did, in numbers and as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from video_gn.parts import Part
from video_gn.shown import count, shown


@dataclass(frozen=True)
class PrepareSummary:
    """What `prepare` did."""

    out: Path
    manifest_path: Path  # list of the prepared videos, for training and testing
    failed_path: Path  # list of the others
    num_listed: int
    num_new: int  # videos made now
    num_kept: int  # videos made by an earlier call
    num_shards: int  # 0 for loose files
    num_bytes: int  # of all prepared videos
    num_source_bytes: int  # of their source files, each counted once
    failed: tuple[tuple[str, str], ...]  # (path, reason) of each video that was not prepared
    part: Part | None = None  # of which all this is; its lists come with the merge

    def text(self) -> str:
        """A few lines for a person."""
        shards = f" in {count(self.num_shards, 'shard')}" if self.num_shards else ""
        lines = [
            f"{self.out}: {self.num_new + self.num_kept} of {count(self.num_listed, 'video')}{shards}, "
            f"{self.num_new} of them new, {self.num_bytes / 1e6:.1f} MB from {self.num_source_bytes / 1e6:.1f} MB",
            f"list: {self.manifest_path}" if self.part is None else f"part {self.part}: --merge writes the list of all",
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} failed" + ("" if self.part else f": {self.failed_path}"))
            lines += [f"  {shown(path)}: {shown(reason)}" for path, reason in self.failed[:5]]
            lines += [f"  and {len(self.failed) - 5} more"] if len(self.failed) > 5 else []
        return "\n".join(lines)
