"""Which videos are for training, validation and test: the manifests of a run, from its lists."""

from __future__ import annotations

import logging
from functools import cache

from video_gn.data.configs import SourceConfig, SplitConfig
from video_gn.errors import ManifestError
from video_gn.lists.manifest import Manifest, check_same_classes, common_videos
from video_gn.lists.read import VideoList
from video_gn.shown import count

log = logging.getLogger(__name__)


def read_manifests(
    train: str | None,
    val: str | None,
    test: str | None,
    *,
    source: SourceConfig,
    split: SplitConfig,
    seed: int,
    of_checkpoint: bool = False,
) -> dict[str, Manifest]:
    """Read the lists, each once, and cut or split them into "train", "val" and "test".

    Args:
        train: list or folder; None for a test alone.
        val: None takes the part "val" of `train`, or splits `train`, of which the part "train" if it has one.
        test: None takes the validation videos; the part "test" of a `train` with the parts "train" and "test" alone.
        source: how lists are read.
        split: how `train` is split.
        seed: seed of the split, and of `source.fraction`.
        of_checkpoint: whether `source.classes` are a checkpoint's, not the user's.

    Returns:
        "val" and "test", and "train" if it is given, without its missing and broken videos.

    Raises:
        ManifestError: for a list that is missing, unreadable or empty, or that has other classes than another.
    """
    found: dict[str, Manifest] = {}

    @cache  # a list is read once, however many of its parts are used
    def open_list(path: str) -> VideoList:
        return VideoList(path, root=source.root, format=source.format, separator=source.separator)

    def read_part(videos: VideoList, part: str, *, reference: Manifest | None = None) -> Manifest:
        """The part; the whole list if it has no parts, or only another one."""
        has_part = videos.has_part(part)
        if not has_part and len(videos.parts) > 1:
            raise ManifestError(
                f"{videos.path}: data.{part} must have a part {part!r}, or one part alone, got {videos.parts}. Rename "
                f"the part that is meant, or give data.{part} a list or folder of its own."
            )
        classes, are_lent = source.classes, of_checkpoint
        if classes is None and reference is not None and source.only_classes is None:
            classes, are_lent = list(reference.classes), True
        manifest = videos.manifest(part if has_part else None, classes=classes, are_lent=are_lent)
        if source.only_classes is not None or source.fraction < 1:
            manifest = manifest.subset(classes=source.only_classes, fraction=source.fraction, seed=seed)
        if reference is not None:
            check_same_classes(reference, manifest)
        return manifest

    if train is not None:
        videos = open_list(train)
        if val is not None:
            listed = read_part(videos, "train")
        elif videos.has_part("val") and len(videos.parts) > 1:
            listed = read_part(videos, "train")
            found["val"] = read_part(videos, "val", reference=listed)
            if test is None and videos.has_part("test"):
                log.info("%s has a part 'test' too; data.test is not set, so tests use its part 'val'", train)
        else:
            listed, found["val"] = read_part(videos, "train").split(
                val_fraction=split.val_fraction, seed=seed, group_by=split.group_by, val_groups=split.val_groups
            )
            if test is None and videos.has_part("train") and videos.has_part("test"):
                found["test"] = read_part(videos, "test", reference=listed)
                text = "%s has no part 'val': %s held out for validation; tests use its part 'test'"
                log.info(text, train, count(len(found["val"]), "video of 'train' is", "videos of 'train' are"))
        found["train"] = _without_unreadable(listed, missing_is_error=source.missing == "error")
    if val is not None:
        found["val"] = read_part(open_list(val), "val", reference=found.get("train"))
        _require_labels(found["val"])
    if test is not None:
        found["test"] = read_part(open_list(test), "test", reference=found.get("train") or found.get("val"))
    found.setdefault("test", found.get("val", next(iter(found.values()))))
    found.setdefault("val", found["test"])
    _warn_of_common_videos(found)
    return found


def _without_unreadable(train: Manifest, *, missing_is_error: bool) -> Manifest:
    """The training videos that are there and that no scan found broken."""
    if train.missing and missing_is_error:
        raise ManifestError(
            f"{train.origin}: {train.missing} of {len(train.records)} listed training videos are not there. "
            "Set data.source.missing to drop to train without them."
        )
    if train.missing:
        log.warning(
            "%s: %d of %d training videos are not there and are left out",
            train.origin,
            train.missing,
            len(train.records),
        )
    if train.broken:
        videos = count(train.broken, "video that a scan found broken is", "videos that a scan found broken are")
        log.warning("%s: %s left out of training", train.origin, videos)
    present = train.drop_missing().drop_broken()
    if not present.records:
        raise ManifestError(f"{train.origin}: none of the listed training videos is there. Is data.source.root right?")
    _require_labels(present)
    return present


def _warn_of_common_videos(found: dict[str, Manifest]) -> None:
    for name in ("val", "test"):
        shared = common_videos(found["train"], found[name]) if "train" in found else []
        if shared and (name == "val" or found["test"] is not found["val"]):
            log.warning(
                "%s in both the training and the %s list (%s, ...): its accuracy says little",
                count(len(shared), "video is", "videos are"),
                name,
                shared[0],
            )


def _require_labels(manifest: Manifest) -> None:
    unlabelled = [record for record in manifest.records if record.label is None]
    if unlabelled:
        raise ManifestError(
            f"{unlabelled[0].source}: {len(unlabelled)} of {len(manifest.records)} videos have no label "
            f"({unlabelled[0].path}, ...). Training and validation need one for each; test and predict do not."
        )
