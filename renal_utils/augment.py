"""Augmentation: the same patch, as another section, scanner or laboratory might have given it.

Every augmentation is a function of (image, labels, seed) and nothing else: one integer gives one
result, in any process. It is built once and seeded anew at each call, which costs microseconds.

Where a rotation looks beyond the patch there is no truth: labels get ``IGNORE_ID`` there, in all
augmentations. The image gets white glass in ``thesis`` (albumentations fills image and mask by one
rule) and its own mirror image in the others, so that the network sees no artificial edges.

A trap worth knowing: ``Compose(seed=...)`` and ``Compose.set_random_seed`` of albumentations 2.0
give *every* transform a generator with the same seed, so that a horizontal and a vertical flip
always fire together and half of all orientations never occur. ``set_random_state``, used here,
lets all transforms draw from one generator.
"""

import math
import os
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from renal_utils.labels import IGNORE_ID
from renal_utils.stain import jitter_stain

Image = UInt8[np.ndarray, "H W 3"]
Labels = UInt8[np.ndarray, "H W"]
Augmented = tuple[Image, Labels]

# Mean and standard deviation of ImageNet's RGB values in 0..1, as pretrained encoders expect them.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

_WHITE = 255


def to_tensor(rgb: Image) -> Float[Tensor, "3 H W"]:
    """Return an image as a network wants it: channels first, float32, mean 0 and variance near 1.

    Pixels are normalised here and in ``to_batch`` only, by the same numbers, in training and on
    whole slides alike.

    Args:
        rgb: Image, 0 to 255.
    """
    mean, scale = (part.view(3, 1, 1) for part in _mean_and_scale())
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).mul_(scale)


def to_batch(images: UInt8[np.ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """Return ``to_tensor`` of images of one size, the very same values, as one batch.

    Made in one piece and in the layout that ``prediction`` wants (``channels_last``), so that
    nothing is copied again.
    """
    mean, scale = _mean_and_scale()
    batch, height, width, _ = images.shape
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    rows = pixels.view(batch, height, width * 3).to(torch.float32)
    rows.sub_(mean.repeat(width)).mul_(scale.repeat(width))
    return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)


def _mean_and_scale() -> tuple[Tensor, Tensor]:
    """Return what is subtracted from pixels of 0 to 255, then what they are multiplied with."""
    return torch.tensor(PIXEL_MEAN).mul_(255), torch.tensor(PIXEL_STD).mul_(255).reciprocal_()


def to_image(tensor: Float[Tensor, "3 H W"]) -> Image:
    """Return the image that ``to_tensor`` made a tensor of: for figures."""
    mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
    scale = torch.tensor(PIXEL_STD).view(3, 1, 1)
    values = (tensor.detach().cpu().float() * scale + mean) * 255
    return values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Augmentation:
    """A named augmentation: ``augmentation(image, labels, seed) -> (image, labels)``.

    Attributes:
        name: Its name in ``AUGMENTATIONS``.
        seed: Shifts the seeds of all calls: another seed gives another series of the same kind.
        transform: What it does, given a random generator.
    """

    name: str
    seed: int
    transform: Callable[[Image, Labels, np.random.Generator], Augmented]

    def __call__(self, image: Image, labels: UInt8[np.ndarray, "h w"], seed: int) -> Augmented:
        """Return new arrays; the given ones stay as they are.

        Args:
            image: Square patch, 0 to 255.
            labels: Its class ids, ``IGNORE_ID`` where unlabelled.
            seed: Non-negative; equal seeds give equal results.

        Raises:
            ValueError: If image and labels are not squares of one size.
        """
        height, width = image.shape[:2]
        if labels.shape != (height, width) or height != width:
            raise ValueError(
                f"image of {height} x {width} and labels of {labels.shape[0]} x {labels.shape[1]} "
                "rows and columns; both must be squares of one size"
            )
        image, labels = self.transform(image, labels, np.random.default_rng([self.seed, seed]))
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def make_augmentation(name: str, *, seed: int = 0) -> Augmentation:
    """Build the augmentation called ``name``.

    Args:
        name: ``none``; ``flips`` (flips and quarter turns, exact, for all image content);
            ``thesis`` (the HuBMAP LinkNet thesis's list, with a fast PiecewiseAffine);
            ``thesis_literal`` (the same with that of albumentations); ``stain`` (turned and scaled
            freely, stain, light, focus and noise varied: what we train on real tissue with);
            ``stain_he`` (the same for haematoxylin and eosin, where ``stain`` is for PAS);
            ``strong`` (as ``stain``, but far wider: for what has to work in other laboratories);
            ``haru`` (HARU-Net's: flips and a rotation).
        seed: Shifts the seeds of all calls.

    Raises:
        ValueError: If the name is unknown; the message lists the known ones.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"no augmentation {name!r}; known: {', '.join(AUGMENTATIONS)}")
    return Augmentation(name, seed, AUGMENTATIONS[name]())


def _keep(image: Image, labels: Labels, rng: np.random.Generator) -> Augmented:
    return image.copy(), labels.copy()


def _flip(image: Image, labels: Labels, rng: np.random.Generator) -> Augmented:
    """Choose one of the eight orientations of a square."""
    turns = int(rng.integers(4))
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return image.copy(), labels.copy()


def _haru(image: Image, labels: Labels, rng: np.random.Generator) -> Augmented:
    """Flip by chance in both directions, then turn by up to 15 degrees (HARU-Net paper, 4.1).

    The paper names "a specified range" without its limits; 15 degrees are ours. It crops too: that
    is the data set's ``jitter_px``.
    """
    flips = [step for step in (np.s_[:, ::-1], np.s_[::-1]) if rng.random() < 0.5]
    for step in flips:
        image, labels = image[step], labels[step]
    side, angle = len(labels), rng.uniform(-15, 15)
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2,) * 2, angle, 1.0)
    return _move(np.ascontiguousarray(image), np.ascontiguousarray(labels), matrix)


def _stain(
    image: Image, labels: Labels, rng: np.random.Generator, *, stain: str = "pas"
) -> Augmented:
    """Turn, scale and move freely, then vary stain, light, focus and noise."""
    image, labels = _warp(image, labels, rng)
    image = jitter_stain(image, rng, strength=0.25, stain=stain)
    if rng.random() < 0.5:
        gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-12, 12)
        image = cv2.addWeighted(image, gain, image, 0, offset)
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.4))
    if rng.random() < 0.25:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(2, 7))
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    return image, labels


def _strong(image: Image, labels: Labels, rng: np.random.Generator) -> Augmented:
    """Vary all that another laboratory may vary, so far that only shape and texture stay."""
    image, labels = _warp(image, labels, rng)
    image = jitter_stain(image, rng, strength=0.5)
    gains, power = rng.uniform(0.8, 1.2, 3), rng.uniform(0.6, 1.6)
    ramp = (np.arange(256)[:, None] / 255) ** power * 255 * gains + rng.uniform(-15, 15)
    image = cv2.LUT(image, np.clip(ramp, 0, 255).astype(np.uint8)[None])
    if rng.random() < 0.5:  # towards grey
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        share = rng.uniform(0, 0.8)
        image = cv2.addWeighted(image, 1 - share, grey, share, 0)
    if rng.random() < 0.5:  # light that changes across the patch
        slope = cv2.resize(rng.uniform(0.75, 1.25, (3, 3)), labels.shape[::-1])
        image = np.clip(image * slope[..., None], 0, 255).astype(np.uint8)
    soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.5))
    if rng.random() < 0.5:  # blurred, or sharpened
        image = soft if rng.random() < 0.5 else cv2.addWeighted(image, 1.7, soft, -0.7, 0)
    if rng.random() < 0.4:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(2, 12))
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    return image, labels


def _warp(image: Image, labels: Labels, rng: np.random.Generator) -> Augmented:
    """Flip by chance, turn by any angle, scale by 0.8 to 1.25, shift by up to 6.25 %, in one go."""
    side = len(labels)
    angle, scale = rng.uniform(0, 2 * math.pi), 2 ** rng.uniform(-0.322, 0.322)
    flip = rng.choice([-1.0, 1.0])
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    linear = np.array([[cos * flip, -sin], [sin * flip, cos]])
    centre = np.full(2, (side - 1) / 2)
    shift = rng.uniform(-0.0625, 0.0625, 2) * side
    matrix = np.column_stack([linear, centre + shift - linear @ centre])
    return _move(image, labels, matrix)


def _move(image: Image, labels: Labels, matrix: Float[np.ndarray, "2 3"]) -> Augmented:
    """Move image and labels by one affine matrix; the image is mirrored beyond its edge."""
    side = len(labels)
    warped = cv2.warpAffine(
        image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    ids = cv2.warpAffine(
        labels, matrix, (side, side), flags=cv2.INTER_NEAREST, borderValue=IGNORE_ID
    )
    return warped, ids


class _ThesisList:
    """The thesis's list, built by albumentations once and given new random states at each call."""

    def __init__(self, *, literal: bool) -> None:
        self.literal = literal
        self.compose = thesis_list(literal=literal)

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> Augmented:
        self.compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        done = self.compose(image=image, mask=labels)
        return done["image"], done["mask"]


def thesis_list(*, literal: bool = False) -> Any:
    """Return the thesis's augmentations as an ``albumentations.Compose``.

    From the HuBMAP LinkNet thesis, section 5.3: flips, quarter turns and ShiftScaleRotate; then one
    of three distortions; then one of three changes of colour. Its text gives no numbers; those of
    ShiftScaleRotate and the two probabilities of 0.3 come from the public HuBMAP notebooks that it
    follows, the rest are albumentations' defaults. We deviate twice: ShiftScaleRotate has become
    ``Affine``, and unless ``literal`` our own ``piecewise.PiecewiseAffine`` moves triangles, as
    albumentations 1 did when the thesis was written. That of albumentations 2.0 blends the points
    by their distance and is affine in no piece. On one core and 256 x 256 pixels it takes 800 ms,
    ours 3.4.
    """
    a = _albumentations()
    # one number a channel: a single one would fill the distortions' rims with red, not white
    border = {"border_mode": cv2.BORDER_CONSTANT, "fill": (_WHITE,) * 3, "fill_mask": IGNORE_ID}
    shift = dict.fromkeys("xy", (-0.0625, 0.0625))
    bend = _piecewise_affine(border, literal=literal)
    distortions = [a.OpticalDistortion(p=1, **border), a.GridDistortion(p=1, **border), bend]
    colours = [a.HueSaturationValue(p=1), a.CLAHE(p=1), a.RandomBrightnessContrast(p=1)]
    return a.Compose(
        [
            a.HorizontalFlip(p=0.5),
            a.VerticalFlip(p=0.5),
            a.RandomRotate90(p=0.5),
            a.Affine(translate_percent=shift, scale=(0.8, 1.2), rotate=(-15, 15), p=0.9, **border),
            a.OneOf(distortions, p=0.3),
            a.OneOf(colours, p=0.3),
        ]
    )


def _piecewise_affine(border: Mapping[str, Any], *, literal: bool) -> Any:
    a = _albumentations()
    from renal_utils.piecewise import PiecewiseAffine

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This augmenter is very slow")
        return (a.PiecewiseAffine if literal else PiecewiseAffine)(p=1, **border)


def _albumentations() -> ModuleType:
    """Import albumentations late (it takes seconds) and keep it from asking for updates."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


AUGMENTATIONS: Mapping[str, Callable[[], Callable[..., Augmented]]] = {
    "none": lambda: _keep,
    "flips": lambda: _flip,
    "stain": lambda: _stain,
    "stain_he": lambda: partial(_stain, stain="he"),
    "strong": lambda: _strong,
    "haru": lambda: _haru,
    "thesis": lambda: _ThesisList(literal=False),
    "thesis_literal": lambda: _ThesisList(literal=True),
}
