"""Leaks: what two splits share and should not.

The hunt looks at three things: donors, places on the slide, and, if asked, the pixels themselves.
"""

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
import shapely

from renal_utils.manifests import Patch, list_patches
from renal_utils.patch_reader import PatchReader

LEAK_COLUMNS = ("kind", "split_a", "split_b", "patch_a", "patch_b", "detail")


def find_leaks(
    manifest: pd.DataFrame, *, read_pixels: bool = False, margin_l0: int = 0
) -> pd.DataFrame:
    """Hunt for what two splits share and should not; an empty table means that none was found.

    Patches without a split are left out. Donors without a name count as one donor, for nobody can
    tell them apart. Overlaps are looked for within an image, and among the tiles of a donor if
    each has a place of its own on the slide (``x_l0``, ``y_l0``).

    Args:
        manifest: Patches with their splits.
        read_pixels: Also read every patch and compare its pixels bit for bit; patches of a single
            colour, such as glass, do not count.
        margin_l0: Level-0 pixels by which a loader may shift crops.

    Returns:
        One row a leak, with ``LEAK_COLUMNS``: a pair of patches in different splits. For a shared
        donor and for equal pixels one pair stands for all of them.
    """
    rows = manifest[manifest["split"] != ""]
    found = itertools.chain(
        _shared_donors(rows),
        _overlaps(rows, margin_l0),
        _equal_pixels(rows) if read_pixels else (),
    )
    return pd.DataFrame(list(found), columns=list(LEAK_COLUMNS))


def _shared_donors(rows: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    for donor, patches in rows.groupby("donor", sort=True):
        first = patches.drop_duplicates("split").sort_values("split")
        for a, b in itertools.combinations(first.itertuples(), 2):
            name = f"donor {donor!r}" if donor else "donor not stated"
            yield "same donor", a.split, b.split, a.patch_id, b.patch_id, name


def _overlaps(rows: pd.DataFrame, margin_l0: int) -> Iterator[tuple[str, ...]]:
    for _, patches in rows.groupby(_frames(rows), sort=True):
        if patches["split"].nunique() > 1:
            yield from _overlaps_in_frame(patches, margin_l0)


def _frames(rows: pd.DataFrame) -> pd.Series:
    """Name the coordinate frame of each patch: its slide's, where tiles say their place on it."""
    place = ["_tile_x", "_tile_y"]
    origin = pd.DataFrame(
        {
            "donor": rows["donor"],
            "image": rows["image_path"],
            place[0]: rows["x_l0"] - np.rint(rows["x_px"] * rows["downsample"]),
            place[1]: rows["y_l0"] - np.rint(rows["y_px"] * rows["downsample"]),
        }
    )
    tiles = origin.drop_duplicates("image")
    placed = ~tiles.duplicated(["donor", *place], keep=False)
    distinct = placed.groupby(tiles["donor"]).all()
    on_slide = origin["donor"].map(distinct) & (origin["donor"] != "")
    return origin["image"].where(~on_slide, "donor " + origin["donor"])


def _overlaps_in_frame(patches: pd.DataFrame, margin_l0: int) -> Iterator[tuple[str, ...]]:
    """Yield the pairs of patches in different splits that share level-0 pixels."""
    side = np.rint(patches["patch_px"] * patches["downsample"]).to_numpy()
    x, y = patches["x_l0"].to_numpy(float), patches["y_l0"].to_numpy(float)
    # half a pixel less on each side, so that patches which only touch do not count
    grow = margin_l0 - 0.25
    boxes = shapely.box(x - grow, y - grow, x + side + grow, y + side + grow)
    first, second = shapely.STRtree(boxes).query(boxes)
    split = patches["split"].to_numpy()
    crossing = (first < second) & (split[first] != split[second])
    named = patches["patch_id"].to_numpy()
    for a, b in zip(first[crossing], second[crossing], strict=True):
        across = min(x[a] + side[a], x[b] + side[b]) - max(x[a], x[b])
        down = min(y[a] + side[a], y[b] + side[b]) - max(y[a], y[b])
        detail = f"{across:.0f} x {down:.0f} level-0 pixels"
        yield "overlapping patches", split[a], split[b], named[a], named[b], detail


def _equal_pixels(rows: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Yield one pair for each picture that occurs in two splits."""
    seen: dict[str, dict[str, Patch]] = {}
    reader = PatchReader()
    for patch in list_patches(rows):
        rgb, _ = reader.read(patch)
        if (rgb == rgb[0, 0]).all():
            continue
        digest = hashlib.sha256(rgb.tobytes()).hexdigest()
        seen.setdefault(digest, {}).setdefault(patch.split, patch)
    reader.close()
    for digest, by_split in seen.items():
        for a, b in itertools.combinations(by_split.values(), 2):
            yield "identical pixels", a.split, b.split, a.patch_id, b.patch_id, digest[:12]
