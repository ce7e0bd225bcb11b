"""Truth of any kind that tells objects apart, read as an instance map.

``read_instances(record)`` is the counterpart of ``label_sources.open_labels`` for nuclei: ids, not
classes, and the whole image at full resolution, since these images are small tiles.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Shaped
from PIL import Image
from scipy.io import loadmat
from skimage.measure import label

from renal_utils.instance_maps import check_instances
from renal_utils.polygon_files import read_monuseg_xml, read_polygons
from renal_utils.polygons import rasterise
from renal_utils.records import ImageRecord
from renal_utils.slides import open_slide

MAT_KEY = "inst_map"
_TIFF_SUFFIXES = (".tif", ".tiff")
Size = tuple[int, int]


def read_instances(record: ImageRecord) -> Int32[np.ndarray, "H W"]:
    """Return the objects of an image's truth as an instance map.

    By the record's ``truth_kind``:

    - ``instance_image``: ids as stored, gaps and all.
    - ``component_image``: touching pixels (8 neighbours) of one value are one object.
    - ``instance_mat``: ``inst_map`` of a MATLAB file, ids as stored. MATLAB keeps numbers as
      doubles, so floats are taken here if all are whole.
    - ``instance_folder``: the k-th PNG by name is object k where it is not 0; where two overlap the
      first keeps the pixel.
    - ``polygons``: the k-th outline is object k; see ``polygons.rasterise``.

    Returns:
        Ids in the image's own pixels, 0 is background.

    Raises:
        ValueError: If the kind does not tell objects apart, the truth is missing or broken, holds
            ids that are negative or not whole, or is of another size than the image; the message
            names the file.
    """
    if record.truth_kind not in _READERS:
        raise ValueError(
            f"{record.image_id}: a truth of kind {record.truth_kind!r} does not tell objects "
            f"apart; kinds that do: {', '.join(_READERS)}"
        )
    path = record.truth_path
    if path is None or not path.exists():
        raise ValueError(f"{record.image_id}: there is no truth {path}; restore it")
    with open_slide(record.image_path) as slide:
        size_l0 = slide.size_l0
    ids = check_instances(_READERS[record.truth_kind](path, size_l0), where=str(path))
    if ids.shape != size_l0[::-1]:
        raise ValueError(
            f"{path} is {ids.shape[1]} x {ids.shape[0]}, but its image {record.image_path} is "
            f"{size_l0[0]} x {size_l0[1]}; is it the truth of another image or scale?"
        )
    return ids


def read_mat_instances(path: Path) -> Shaped[np.ndarray, "_ _"]:
    """Return ``inst_map`` of a MATLAB file (CoNSeP, CPM-17).

    Raises:
        ValueError: If the file is broken, of version 7.3 (HDF5), lacks ``inst_map``, or holds
            numbers in it that are not whole.
    """
    try:
        content = loadmat(path)
    except NotImplementedError as error:
        raise ValueError(f"{path}: MATLAB 7.3; save it with `save -v7`") from error
    except (ValueError, TypeError, OSError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is no readable MATLAB file ({error}); was it cut off?") from error
    if MAT_KEY not in content:
        names = sorted(name for name in content if not name.startswith("__"))
        raise ValueError(f"{path}: no {MAT_KEY!r} in it, it holds {names}; is it the label file?")
    ids = np.asarray(content[MAT_KEY])
    if not np.issubdtype(ids.dtype, np.floating):
        return ids
    if not (np.isfinite(ids) & (ids == np.floor(ids))).all():
        raise ValueError(f"{path}: {MAT_KEY!r} holds numbers that are not whole; ids are whole")
    return ids.astype(np.int64)


def _read_image(path: Path, size_l0: Size) -> Shaped[np.ndarray, "_ _"]:
    if path.suffix.lower() in _TIFF_SUFFIXES:
        with open_slide(path) as slide:
            return slide.at_downsample(1.0).read_labels((0, 0), slide.size_l0)
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); was it cut off?") from error
    if values.ndim != 2:
        raise ValueError(f"{path} is a colour image; expected one number a pixel, a grey PNG")
    return values.astype(np.uint8) if values.dtype == bool else values


def _read_components(path: Path, size_l0: Size) -> Shaped[np.ndarray, "_ _"]:
    return label(_read_image(path, size_l0), connectivity=2)


def _read_mat(path: Path, size_l0: Size) -> Shaped[np.ndarray, "_ _"]:
    return read_mat_instances(path)


def _read_folder(path: Path, size_l0: Size) -> Shaped[np.ndarray, "_ _"]:
    masks = sorted(p for p in path.glob("*.png") if not p.name.startswith("."))
    if not masks:
        raise ValueError(f"{path}: no PNG in it; expected one mask an object")
    ids = np.zeros(size_l0[::-1], np.int32)
    for number, mask in enumerate(masks, start=1):
        values = _read_image(mask, size_l0)
        if values.shape != ids.shape:
            raise ValueError(
                f"{mask} is {values.shape[1]} x {values.shape[0]}, but its image is "
                f"{size_l0[0]} x {size_l0[1]}; is it the mask of another image?"
            )
        ids[(values > 0) & (ids == 0)] = number
    return ids


def _read_outlines(path: Path, size_l0: Size) -> Shaped[np.ndarray, "_ _"]:
    is_xml = path.name.lower().removesuffix(".gz").endswith(".xml")
    objects = (read_monuseg_xml if is_xml else read_polygons)(path)
    return rasterise(objects, size_l0)


_READERS: Mapping[str, Callable[[Path, Size], Shaped[np.ndarray, "_ _"]]] = {
    "instance_image": _read_image,
    "component_image": _read_components,
    "instance_mat": _read_mat,
    "instance_folder": _read_folder,
    "polygons": _read_outlines,
}
