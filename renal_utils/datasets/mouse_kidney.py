"""Mouse kidneys with all their tissues labelled (Bouteldja et al., JASN 2021).

Layout: ``NAME.png``, a PAS image, beside ``NAME-labels.png``, class ids of ``labels.MOUSE_KIDNEY``
of its centre: their network sees more than it labels, so the rim of an image has no truth. The
authors' repository holds one example of each of six disease models, named like it.

Each file is taken as an animal of its own and of its own group, by its name.
"""

from pathlib import Path

from renal_utils.records import ImageRecord

LABELS = "-labels"


def read_mouse_kidney(folder: str | Path, *, mpp: float | int | None = None) -> list[ImageRecord]:
    """Read a folder of mouse kidney images and the labels of their centres.

    Args:
        folder: Holds ``NAME.png`` and ``NAME-labels.png``.
        mpp: Microns per pixel, where you know it; the files do not state it.

    Raises:
        ValueError: If there are no images, or an image lacks its labels.
    """
    images = sorted(p for p in Path(folder).glob("*.png") if not p.stem.endswith(LABELS))
    if not images:
        raise ValueError(f"{folder}: no NAME.png in it; lay it out as data/README.md says")
    truths = [path.with_name(f"{path.stem}{LABELS}.png") for path in images]
    if missing := [path for path in truths if not path.is_file()]:
        raise ValueError(f"{missing[0]} is missing; restore it, or take its image away")
    return [
        ImageRecord(
            image_id=image.stem,
            image_path=image,
            truth_kind="centre_image",
            truth_path=truth,
            label_set="mouse_kidney",
            donor=image.stem,
            group=image.stem,
            mpp=None if mpp is None else float(mpp),
        )
        for image, truth in zip(images, truths, strict=True)
    ]
