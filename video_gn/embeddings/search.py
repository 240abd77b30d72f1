"""Most similar rows, and all pairs of near-copies, by the cosine of embeddings: exact, with bounded memory.

Shape letters: N, M rows, C features, Q queries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from video_gn.embeddings.reading import BLOCK_ROWS, Block, EmbeddingsFile, to_unit
from video_gn.errors import ConfigError

# Rows of the first file that are held at a time, 256 MiB at 2048 features: the second one is read once for each.
HELD_ROWS = 16 * BLOCK_ROWS
MOST_PAIRS = 1_000_000
# Near-copies lie above, see README.md beside this file.
NEAR_COPY = 0.995
_DIGITS = 6  # of a similarity


@dataclass(frozen=True, eq=False)
class Query:
    """What to look for: its path, whose rows are left out, and embeddings of length 1, float64 (Q, C)."""

    path: str
    unit_QC: np.ndarray


@dataclass(frozen=True)
class Match:
    """Two rows by number, or a query's place and a row, and their cosine, rounded."""

    one: int
    other: int
    similarity: float


def rows_of(file: EmbeddingsFile, paths: Collection[str]) -> dict[str, np.ndarray]:
    """Embeddings of length 1 of the rows with these paths, float64 (Q, C); those that have none are left out."""
    found: dict[str, list[np.ndarray]] = {}
    for block in file.blocks():
        for path in paths:
            mine = np.flatnonzero(block.paths == path)
            if len(mine):
                found.setdefault(path, []).append(to_unit(block.x_NC[mine]))
    return {path: np.concatenate(several) for path, several in found.items()}


def most_similar(queries: Sequence[Query], file: EmbeddingsFile, *, top_k: int) -> list[Match]:
    """For each query the most similar rows, best first; of equal ones the first row. Of clips the best one counts.

    Raises:
        ConfigError: a query has another number of features.
    """
    for query in queries:
        if query.unit_QC.shape[1] != file.width:
            raise ConfigError(
                f"{query.path}: must have {file.width} features as the rows of {file.path}, got "
                f"{query.unit_QC.shape[1]}. Take the checkpoint that the file was made with."
            )
    best: list[list[Match]] = [[] for _ in queries]
    for block in file.blocks():
        unit_NC = to_unit(block.x_NC)
        for place, query in enumerate(queries):
            cosine_N = np.round((unit_NC @ query.unit_QC.T).max(1), _DIGITS)
            cosine_N[block.paths == query.path] = -np.inf
            order = np.argsort(-cosine_N, kind="stable")[:top_k]
            found = [Match(place, block.first + int(n), float(cosine_N[n])) for n in order if cosine_N[n] > -np.inf]
            best[place] = sorted(best[place] + found, key=lambda match: -match.similarity)[:top_k]
    return [match for matches in best for match in matches]


def near_copies(one: EmbeddingsFile, other: EmbeddingsFile | None, *, above: float) -> list[Match]:
    """All pairs of rows whose cosine is at least `above`, most similar first.

    Pairs are of a row of each file; with None of two rows of one file. Two clips of a video are no pair there.

    Raises:
        ConfigError: there are more than `MOST_PAIRS`.
    """
    # A float32 product of two vectors of length 1 is off by at most C * eps / 2 (Higham 2002, section 3.1), and their
    # rounding adds eps: what could be a pair is computed once more, in float64.
    surely_less = above - 0.5 * 10**-_DIGITS - (one.width / 2 + 4) * np.finfo(np.float32).eps
    found: list[Match] = []
    for held in _held(one):
        for block in (one if other is None else other).blocks():
            theirs_MC = to_unit(block.x_NC).astype(np.float32)
            for start in range(0, len(held.paths), BLOCK_ROWS):
                mine = held.rows(start, start + BLOCK_ROWS)
                if other is None and mine.first >= block.first + len(block.paths):
                    continue  # each pair once
                places = np.nonzero(to_unit(mine.x_NC).astype(np.float32) @ theirs_MC.T >= surely_less)
                for piece in range(0, len(places[0]), BLOCK_ROWS):
                    n, m = (p[piece : piece + BLOCK_ROWS] for p in places)
                    if other is None:
                        is_pair = mine.first + n < block.first + m
                        if one.rows == "clips":
                            is_pair &= mine.paths[n] != block.paths[m]
                        n, m = n[is_pair], m[is_pair]
                    cosine = np.round(np.einsum("nc,nc->n", to_unit(mine.x_NC[n]), to_unit(block.x_NC[m])), _DIGITS)
                    chosen = np.flatnonzero(cosine >= above)
                    found += [Match(mine.first + int(n[p]), block.first + int(m[p]), float(cosine[p])) for p in chosen]
                    if len(found) > MOST_PAIRS:
                        raise ConfigError(
                            f"--above must leave at most {MOST_PAIRS} pairs, got more with {above:g}. Raise it; a "
                            "network that is not trained finds all videos alike."
                        )
    return sorted(found, key=lambda match: (-match.similarity, match.one, match.other))


def _held(file: EmbeddingsFile) -> Iterator[Block]:
    """The rows of a file in pieces of at most `HELD_ROWS`."""
    blocks = file.blocks()
    while several := list(islice(blocks, HELD_ROWS // BLOCK_ROWS)):
        x_NC = np.concatenate([block.x_NC for block in several])
        yield Block(several[0].first, np.concatenate([block.paths for block in several]), x_NC)
