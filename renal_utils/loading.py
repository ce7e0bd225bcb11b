"""Loading: from a manifest's rows to batches of tensors, the same on any number of workers.

All chance comes from integers: a sample depends on (seed, epoch, index, repeat) and the order of
samples on (seed, epoch), never on a worker, a process or the clock. So a training that is resumed
at epoch 7 sees the batches that it would have seen anyway.

The epoch lives in one place, the dataset: ``dataset.set_epoch(7)``. The sampler looks there and
has no ``set_epoch`` of its own, because a loader that went through Lightning Fabric's
``setup_dataloaders`` would call it with its own count of iterations, which starts from 0 again
after a resume. Workers are started anew at each epoch and so see the dataset as it is then.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, UInt8
from torch.utils.data import DataLoader, Dataset

from renal_utils.augment import Augmentation, make_augmentation, to_tensor
from renal_utils.instance_maps import pack_planes, unpack_planes
from renal_utils.instance_sources import read_instances
from renal_utils.manifests import Patch, check_manifest, list_patches
from renal_utils.patch_reader import PatchReader

CACHES = ("none", "memory")
_BYTES_PER_PIXEL = 4  # RGB and a class id


class Draw(NamedTuple):
    """Which row to load, and its how manyth repeat in this epoch: each has its own chance."""

    row: int
    repeat: int = 0


class PatchDataset(Dataset[dict[str, Any]]):
    """The patches of a manifest as tensors: ``image``, ``target`` and ``index``.

    ``image`` is ``Float "3 H W"``, normalised by ``to_tensor``; ``target`` is ``Int64 "H W"`` of
    class ids, 255 where nothing is known; with ``contour_px``, ``Int64 "2 H W"``, mask and contour.
    ``dataset[5]`` and ``dataset[Draw(5, 2)]`` both work: the second is the third crop and
    augmentation of patch 5 in this epoch.
    """

    def __init__(
        self,
        manifest: pd.DataFrame,
        *,
        augmentation: str | Augmentation = "none",
        seed: int = 0,
        jitter_px: int = 0,
        contour_px: int | None = None,
        cache: str = "none",
        cache_limit_gb: float | int = 4.0,
    ) -> None:
        """Check the manifest and, with ``cache="memory"``, read its images.

        Args:
            manifest: The patches, all of one size.
            augmentation: Name in ``AUGMENTATIONS``, or what ``make_augmentation`` returned.
            seed: Of all that is random about a sample, 0 or more.
            jitter_px: Up to how far a crop moves from its row's place in either direction, pixels
                at the working scale; never beyond the image. With ``stride / 2`` any crop of the
                image can occur. Near the border to another split, see ``margin_l0`` of
                ``split_by_column``.
            contour_px: Thickness of the contours that make a second plane of the target, drawn
                from the truth's instances at full resolution before augmentation moves them; needs
                ``cache="memory"`` and patches of downsample 1. None: one plane, the class ids.
            cache: ``none`` reads from the files at every draw; ``memory`` keeps each whole image
                at its working scale, decoded: the choice for tiles.
            cache_limit_gb: What ``memory`` may take, in 10**9 bytes.

        Raises:
            ValueError: If the manifest is empty or mixes patch sizes or label sets, an option is
                unknown, or the images do not fit into the cache.
        """
        check_manifest(manifest)
        for column in ("patch_px", "label_set"):
            found = manifest[column].unique().tolist()
            if len(found) != 1:
                raise ValueError(f"a data set needs one {column}, but this manifest has {found}")
        if cache not in CACHES or jitter_px < 0:
            raise ValueError(f"cache {cache!r} must be one of {CACHES}, jitter_px {jitter_px} >= 0")
        if contour_px is not None and (cache != "memory" or set(manifest["downsample"]) != {1.0}):
            raise ValueError(
                f"contour_px={contour_px} draws contours on whole images: set cache='memory', and "
                f"cut the patches at downsample 1 (these: {sorted(set(manifest['downsample']))})"
            )
        self.manifest = manifest.reset_index(drop=True)
        self.seed, self.jitter_px, self.epoch = seed, jitter_px, 0
        self.contour_px = contour_px
        self.augmentation = (
            make_augmentation(augmentation) if isinstance(augmentation, str) else augmentation
        )
        self._patches = list_patches(self.manifest)
        self._reader = PatchReader()
        self._images: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        if cache == "memory":
            self._fill_cache(float(cache_limit_gb) * 1e9)

    def __len__(self) -> int:
        return len(self._patches)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, before iterating over the loader."""
        self.epoch = int(epoch)

    def __getitem__(self, which: int | tuple[int, int]) -> dict[str, Any]:
        index, repeat = which if isinstance(which, tuple) else (which, 0)
        patch = self._patches[index]
        index %= len(self._patches)
        rng = np.random.default_rng([self.seed, self.epoch, index, repeat])
        image, labels = self._read(patch, self._place(patch, rng))
        image, labels = self.augmentation(image, labels, int(rng.integers(2**31)))
        labels = labels if self.contour_px is None else unpack_planes(labels)
        target = torch.from_numpy(labels).to(torch.int64)
        return {"image": to_tensor(image), "target": target, "index": index}

    def _place(self, patch: Patch, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the left top corner of the crop: evenly, among those within the image."""
        if self.jitter_px == 0:
            return patch.x_px, patch.y_px
        corner = []
        for at, length in zip((patch.x_px, patch.y_px), self._size(patch), strict=True):
            low = max(0, at - self.jitter_px)
            high = min(length - patch.patch_px, at + self.jitter_px)
            corner.append(int(rng.integers(low, high + 1)))
        return corner[0], corner[1]

    def _size(self, patch: Patch) -> tuple[int, int]:
        if not self._images:
            return self._reader.open(patch)[0].size_px
        height, width = self._images[patch.image_key][1].shape
        return width, height

    def _read(
        self, patch: Patch, xy_px: tuple[int, int]
    ) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        if not self._images:
            return self._reader.read(patch, xy_px)
        (x, y), side = xy_px, patch.patch_px
        rgb, ids = self._images[patch.image_key]
        return rgb[y : y + side, x : x + side], ids[y : y + side, x : x + side]

    def _fill_cache(self, limit_bytes: float) -> None:
        """Read every image whole, after a look at their sizes."""
        images = {patch.image_key: patch for patch in self._patches}
        needed = 0
        for patch in images.values():
            width, height = self._reader.open(patch)[0].size_px
            needed += width * height * _BYTES_PER_PIXEL
        if needed > limit_bytes:
            raise ValueError(
                f"cache='memory' would need {needed / 1e9:.2f} GB for {len(images)} images, but "
                f"cache_limit_gb is {limit_bytes / 1e9:g}; use cache='none', export the patches "
                "to small files, work at a larger downsample, or raise the limit"
            )
        for key, patch in images.items():
            view, labels = self._reader.open(patch)
            if self.contour_px is None:
                ids = labels.read((0, 0), view.size_px, patch.downsample)
            else:
                ids = pack_planes(read_instances(patch.record), thickness_px=self.contour_px)
            self._images[key] = (view.read((0, 0), view.size_px), ids)
        self._reader.close()


class PatchSampler:
    """The order of an epoch's draws; a function of the seed and the dataset's epoch.

    Has no ``set_epoch``: see the module's text.
    """

    def __init__(
        self,
        dataset: PatchDataset,
        *,
        seed: int,
        draws: int | None = None,
        shuffle: bool = True,
        positive_share: float | int | None = None,
    ) -> None:
        self.dataset = dataset
        self.seed, self.shuffle, self.positive_share = seed, shuffle, positive_share
        self.draws = len(dataset) if draws is None else draws
        everything = np.arange(len(dataset))
        self._pools = [(everything, self.draws)]
        if positive_share is not None:
            self._pools = self._pools_by_truth(float(positive_share))

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[Draw]:
        if not self.shuffle:
            yield from (Draw(row) for row in range(len(self)))
            return
        rng = np.random.default_rng([self.seed, self.dataset.epoch])
        order = np.concatenate([_deal(rng, pool, count) for pool, count in self._pools])
        if len(self._pools) > 1:
            order = rng.permutation(order)
        yield from (Draw(row, repeat) for row, repeat in order.tolist())

    def _pools_by_truth(self, share: float) -> list[tuple[np.ndarray, int]]:
        """Divide the draws between patches with and without foreground."""
        if not 0 <= share <= 1:
            raise ValueError(f"positive_share is a share of the draws, 0 to 1, not {share}")
        positive = self.dataset.manifest["positive_fraction"].to_numpy() > 0
        count = round(share * self.draws)
        pools = [
            (np.flatnonzero(positive), count),
            (np.flatnonzero(~positive), self.draws - count),
        ]
        for (pool, wanted), kind in zip(pools, ("with", "without"), strict=True):
            if wanted and not len(pool):
                raise ValueError(
                    f"positive_share={share:g} asks for {wanted} draws of patches {kind} "
                    "foreground, but the manifest has none"
                )
        return [(pool, wanted) for pool, wanted in pools if wanted]


def make_loader(
    dataset: PatchDataset,
    *,
    batch_size: int,
    shuffle: bool,
    num_workers: int = 0,
    seed: int = 0,
    steps_per_epoch: int | None = None,
    positive_share: float | int | None = None,
) -> DataLoader:
    """Return the batches of a data set.

    Without ``steps_per_epoch`` an epoch is every patch once; a shuffled one leaves out the
    incomplete last batch, since batch norm cannot learn from a single sample. With it, an epoch is
    that many full batches: patches come again (moved and augmented otherwise) once all others have
    been drawn. Under ``torchrun``, ``training.fit`` deals each batch out to the processes.

    Args:
        dataset: What to load.
        batch_size: Patches a batch.
        shuffle: Whether in random order, anew each epoch; False is the manifest's order.
        num_workers: Processes that load; 0 loads in this one. The samples are the same.
        seed: Of the order.
        steps_per_epoch: Batches an epoch; needs ``shuffle``.
        positive_share: Share of the draws, 0 to 1, that show foreground; needs ``shuffle``. None
            draws all patches alike. A network trained so expects foreground to be that common.

    Raises:
        ValueError: If options contradict each other, or there are fewer patches than a batch.
    """
    if batch_size < 1 or (steps_per_epoch is not None and steps_per_epoch < 1):
        raise ValueError(f"batch_size {batch_size} and steps {steps_per_epoch} must be at least 1")
    if not shuffle and (steps_per_epoch is not None or positive_share is not None):
        raise ValueError("steps_per_epoch and positive_share draw at random: set shuffle=True")
    draws = None if steps_per_epoch is None else steps_per_epoch * batch_size
    if shuffle and draws is None and len(dataset) < batch_size:
        raise ValueError(
            f"{len(dataset)} patches do not fill a batch of {batch_size}; take a smaller batch, "
            "cut more patches, or set steps_per_epoch to draw them repeatedly"
        )
    sampler = PatchSampler(
        dataset, seed=seed, draws=draws, shuffle=shuffle, positive_share=positive_share
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=shuffle,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
    )


def _deal(rng: np.random.Generator, pool: Int[np.ndarray, " n"], count: int) -> np.ndarray:
    """Return ``count`` pairs (row, repeat): shuffled decks of the whole pool, one after another."""
    decks = -(-count // len(pool))
    pairs = [np.column_stack([rng.permutation(pool), np.full(len(pool), d)]) for d in range(decks)]
    return np.concatenate(pairs)[:count]


def _start_worker(worker_id: int) -> None:
    """Keep a worker to one thread: several workers share the cores already."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
