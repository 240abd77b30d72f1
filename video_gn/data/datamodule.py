"""The LightningDataModule: loaders of clips from a run's manifests, and the position in training for checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from video_gn.checks import check_choice
from video_gn.clips import ClipBatch
from video_gn.data.configs import (
    AugmentConfig,
    LoaderConfig,
    SourceConfig,
    SplitConfig,
    ViewsConfig,
    check_decoded_size,
)
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig, ClipDataset, EvalDataset, RandomEvalDataset, TrainDataset
from video_gn.data.layout import collate
from video_gn.data.loader import WatchedLoader
from video_gn.data.manifests import read_manifests
from video_gn.data.samplers import EvalSampler, ExtraSampler, Order, TrainSampler, epoch_order
from video_gn.decoding import choose_backend
from video_gn.errors import ConfigError, ManifestError, SettingError
from video_gn.lists.manifest import Manifest
from video_gn.lists.read import find_videos
from video_gn.run.batch_change import present_cut
from video_gn.run.lightning_internals import pads_samplers
from video_gn.sampling import SPACINGS

log = logging.getLogger(__name__)


class VideoDataModule(LightningDataModule):
    """Loaders of clips from lists, folders or the official Kinetics csv.

    Args:
        train: List, folder or csv of the training videos: files, or folders of frames.
        val: List, folder or csv of the validation videos; None takes `train`'s own "val" part, or splits `train`.
        test: List, folder or csv of the test videos; None takes the validation videos.
        predict: Video, folder, glob or list without labels.
        source: Settings of how lists are read.
        split: Settings of how `train` is split if it has no part for validation.
        clip: Settings of which frames make a clip.
        augment: Training augmentation.
        views: Validation and test views.
        batch_size: Clips of a batch on one rank.
        val_batch_size: Clips of a validation batch; None takes `batch_size`. Tests take one video at a time.
        loader: Settings of the loaders.
        backend: Decoder, see `video_gn.decoding.open_video`.
        seed: Seed of order, clips and augmentation; the command line fills in `seed_everything`.
        max_broken_fraction: Fraction of the training videos above which undecodable ones stop the training.
        balance: "class" draws each class equally often in training; "none" each video once an epoch.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | list[str] | None = None,
        *,
        source: SourceConfig = SourceConfig(),  # noqa: B008
        split: SplitConfig = SplitConfig(),  # noqa: B008
        clip: ClipConfig = ClipConfig(),  # noqa: B008
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008
        views: ViewsConfig = ViewsConfig(),  # noqa: B008
        batch_size: int = 8,
        val_batch_size: int | None = None,
        loader: LoaderConfig = LoaderConfig(),  # noqa: B008
        backend: str = "auto",
        seed: int = 0,
        max_broken_fraction: float = 0.05,
        balance: Literal["none", "class"] = "none",
    ) -> None:
        super().__init__()
        self.paths = {"train": train, "val": val, "test": test}
        self.predict_paths = [predict] if isinstance(predict, str) else predict
        self.source = source
        self.split = split
        self.clip = clip
        self.augment = augment
        self.views = views
        self.batch_size = batch_size
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.loader = loader
        self.backend = backend
        self.seed = seed
        self.max_broken_fraction = max_broken_fraction
        self.balance = balance
        self._check_settings()
        self.manifests: dict[str, Manifest] = {}
        self.tested: Collection[int] = ()  # videos that an earlier start of the same test or prediction has scored
        self._position: dict[str, int] = {"epoch": 0, "batches": 0, "clips": 0}
        # Built here, so that sizes that do not fit together are an error before any list is read.
        self.train_transform = augment.build()
        crop_px = views.crop_px or augment.crop_px
        self.val_crops = TestCrops("center", short_side_px=views.short_side_px, crop_px=crop_px)
        self.test_crops = TestCrops(views.crops, short_side_px=views.short_side_px, crop_px=crop_px)

    def _check_settings(self) -> None:
        """Refuse settings that are out of their ranges or do not fit together, with a ValueError that names one."""
        clip, views, repeats = self.clip, self.views, self.augment.repeats
        check_choice("balance", self.balance, ("none", "class"))
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("clip.num_frames", clip.num_frames, 1),
            ("clip.stride", clip.stride, 1),
            ("views.num_clips", views.num_clips, 1),
            ("val_batch_size", self.val_batch_size, 1),
            ("loader.num_workers", self.loader.num_workers or 0, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if repeats < 1 or self.batch_size % repeats:
            raise ValueError(f"augment.repeats must divide batch_size ({self.batch_size}), got {repeats}")
        if views.spacing not in SPACINGS:
            raise ValueError(f"views.spacing must be one of {', '.join(SPACINGS)}, got {views.spacing!r}")
        if not 0 < self.source.fraction <= 1:
            raise ValueError(f"source.fraction must be in (0, 1], got {self.source.fraction}")
        if not 0 <= self.max_broken_fraction <= 1:
            raise ValueError(f"max_broken_fraction must be in [0, 1], got {self.max_broken_fraction}")
        choose_backend(self.backend, scales=clip.decode_short_side_px is not None)
        if clip.decode_short_side_px is not None:
            check_decoded_size(clip.decode_short_side_px, self.augment, views)

    # ---- lists -------------------------------------------------------------------------------

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by number; empty if no list with labels was read."""
        for name in ("train", "val", "test"):
            if name in self.manifests:
                return self.manifests[name].classes
        return ()

    def read(self, stage: str | None = None, *, of_checkpoint: bool = False) -> dict[str, Manifest]:
        """Read the lists that a stage needs, once.

        Args:
            stage: "fit", "validate", "test" or "predict"; None reads all that are given.
            of_checkpoint: whether `source.classes` are a checkpoint's, not the user's.
        """
        if stage == "predict":
            if not self.predict_paths:
                raise ManifestError("data.predict is not set. Write --data.predict with a video, folder, glob or list.")
            if self.source.root is not None or self.source.format != "auto":
                log.warning("data.source is not used by predict: lists take paths from their own directory")
            if "predict" not in self.manifests:
                self.manifests["predict"] = find_videos(self.predict_paths)
            return self.manifests
        if "val" in self.manifests:
            return self.manifests
        train, val, test = self.paths["train"], self.paths["val"], self.paths["test"]
        if train is None and (stage == "fit" or (val is None and test is None)):
            raise ManifestError("data.train is not set. Write --data.train with a list, a folder or a csv.")
        self.manifests = read_manifests(
            train, val, test, source=self.source, split=self.split, seed=self.seed, of_checkpoint=of_checkpoint
        )
        if stage == "fit" and len(self.classes) == 1 and not (self.source.classes or self.source.only_classes):
            raise ManifestError(
                f"{self.manifests['train'].origin}: classes must be at least 2 to be told apart, got "
                f"{self.classes[0]!r} alone. Is data.train the folder above the classes? If one is meant, name it "
                "in data.source.classes."
            )
        return self.manifests

    def setup(self, stage: str) -> None:
        """Read the lists; Lightning calls this on every process."""
        if self.trainer and self.trainer.world_size > 1 and pads_samplers(self.trainer):
            raise SettingError(
                "use_distributed_sampler must be False: Lightning's sampler repeats videos to pad. "
                "Write Trainer(use_distributed_sampler=False)."
            )
        self.read(stage)

    def describe(self) -> dict[str, Any]:
        """What a checkpoint stores about the data, in plain containers."""
        return {
            "classes": list(self.classes),
            "clip": self.clip.describe(),
            "views": {**asdict(self.views), "crop_px": self.test_crops.crop_px},
        }

    # ---- loaders -----------------------------------------------------------------------------

    @property
    def _ranks(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    @property
    def _videos_per_batch(self) -> int:
        return self.batch_size // self.augment.repeats

    def train_dataset(self) -> TrainDataset:
        """Clips of the training list by (epoch, record), once the lists are read."""
        return TrainDataset(
            self.manifests["train"].records,
            clip=self.clip,
            transform=self.train_transform,
            seed=self.seed,
            backend=self.backend,
            repeats=self.augment.repeats,
        )

    def train_dataloader(self) -> DataLoader[ClipBatch]:
        """Random clips, from the position that `load_state_dict` brought back."""
        records = self.manifests["train"].records
        world_size = self._ranks["world_size"]
        per_step = self.batch_size * world_size
        if len(records) < self._videos_per_batch * world_size:
            raise ManifestError(
                f"{self.manifests['train'].origin}: {len(records)} training videos do not fill one batch of "
                f"{self.batch_size} on {world_size} process(es). Set a smaller data.batch_size."
            )
        if self._position["clips"] != self._position["batches"] * per_step:
            before = self._position["clips"] // self._position["batches"]
            raise ConfigError(
                f"the checkpoint lies inside an epoch of {before} clips a step, here a step has {per_step}. Resume "
                f"with {before}, or from a checkpoint between two epochs."
            )
        sampler = TrainSampler(
            len(records),
            batch_size=self._videos_per_batch,
            seed=self.seed,
            **self._ranks,
            start_epoch=self._position["epoch"],
            start_batch=self._position["batches"],
            order=self.train_order(),
            same_each_epoch=getattr(self.trainer, "overfit_batches", 0) > 0,
        )
        return self._loader(self.train_dataset(), sampler, self._videos_per_batch, persistent=True)

    def train_order(self) -> Order | None:
        """The order of balanced training; None for permutations of the list."""
        return partial(epoch_order, labels=self.manifests["train"].labels) if self.balance == "class" else None

    def extra_train_dataloader(self, *, stream: int, start: int, num_batches: int) -> DataLoader[ClipBatch]:
        """Batches of training clips beside the training: a function of (seed, stream, start), in the training's sizes.

        Takes nothing from the training's order, position, workers or random state, and changes none of them. Broken
        videos are replaced as in training.

        Arguments as `ExtraSampler`.

        Raises:
            ManifestError: for a list without videos.
        """
        manifest = self.manifests["train"]
        if not manifest.records:
            raise ManifestError(f"{manifest.origin}: no training videos")
        sampler = ExtraSampler(
            len(manifest),
            batch_size=self._videos_per_batch,
            num_batches=num_batches,
            seed=self.seed,
            stream=stream,
            start=start,
            **self._ranks,
            order=self.train_order(),
        )
        return self._loader(self.train_dataset(), sampler, self._videos_per_batch, persistent=False)

    def val_dataloader(self) -> DataLoader[ClipBatch]:
        """One clip of each validation video."""
        records = self.manifests["val"].records
        dataset: ClipDataset
        if self.views.val == "random":
            # Only the crop and the flip: other augmentation is not part of the measurement.
            crop = self.train_transform.crop
            dataset = RandomEvalDataset(records, clip=self.clip, transform=crop, seed=self.seed, backend=self.backend)
        else:
            dataset = EvalDataset(records, clip=self.clip, crops=self.val_crops, num_clips=None, backend=self.backend)
        sampler = EvalSampler(len(records), **self._ranks)
        return self._loader(dataset, sampler, self.val_batch_size, persistent=True)

    def test_dataloader(self) -> DataLoader[ClipBatch]:
        """All views of a test video, one video at a time."""
        return self._views_loader(self.manifests["test"])

    def predict_dataloader(self) -> DataLoader[ClipBatch]:
        """All views of an unlabelled video, one video at a time."""
        return self._views_loader(self.manifests["predict"])

    def _views_loader(self, manifest: Manifest) -> DataLoader[ClipBatch]:
        dataset = EvalDataset(
            manifest.records,
            clip=self.clip,
            crops=self.test_crops,
            num_clips=self.views.num_clips,
            spacing=self.views.spacing,
            backend=self.backend,
        )
        sampler = EvalSampler(len(manifest), **self._ranks, leave_out=self.tested)
        return self._loader(dataset, sampler, 1, persistent=False)

    def _loader(
        self, dataset: ClipDataset, sampler: Any, batch_size: int, *, persistent: bool
    ) -> DataLoader[ClipBatch]:
        num_workers = self.loader.num_workers
        if num_workers is None:
            num_workers = min(8, len(os.sched_getaffinity(0)))
        for_workers: dict[str, Any] = {
            "timeout": self.loader.timeout_seconds,
            "prefetch_factor": self.loader.prefetch_factor,
            "persistent_workers": persistent,
        }
        return WatchedLoader(
            cast(Dataset[ClipBatch], dataset),  # after `collate`
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            **(for_workers if num_workers else {}),
            # Not torch's global generator: drawing worker seeds would move the training's random state.
            generator=torch.Generator().manual_seed(self.seed),
        )

    # ---- the position in training ------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """Position in training: epochs done, and batches and clips (of all processes) of the current one."""
        if self.trainer is None:
            return dict(self._position)
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        epoch = progress.processed
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if progress.started == progress.processed and epoch > 0:
            epoch -= 1  # inside the epoch's end hooks, where its counter is ahead of the batches'
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        cut = present_cut(self, self.trainer)
        position = {"epoch": epoch, "batches": batches, "clips": batches * cut.clips}
        return position | cut.describe() | {"repeats": self.augment.repeats}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the position of a checkpoint; Lightning calls this before it asks for the loader."""
        self._position = {name: int(state_dict[name]) for name in ("epoch", "batches", "clips")}


_CONFIGS: dict[str, Any] = {
    "source": SourceConfig,
    "split": SplitConfig,
    "clip": ClipConfig,
    "augment": AugmentConfig,
    "views": ViewsConfig,
    "loader": LoaderConfig,
}


def build_datamodule(settings: dict[str, Any]) -> VideoDataModule:
    """A data module from its arguments as a config holds them: nested plain settings."""
    return VideoDataModule(**{k: _CONFIGS[k](**v) if k in _CONFIGS else v for k, v in settings.items()})
