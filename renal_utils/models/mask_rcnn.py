"""Mask R-CNN (He et al., ICCV 2017) with the changes of Han et al. for glomeruli; by torchvision.

It finds objects one by one: a network proposes boxes, a second part says of each what it shows and
moves its edges, a third draws a mask inside. Han et al. ("Glomerular microscopic image segmentation
based on convolutional neural network", described in the HuBMAP thesis, section 3.2.4) shorten the
sides of the anchors, so that small glomeruli are not missed, and add transposed convolutions to the
branch of the masks, so that their outlines are finer. The numbers are not known to us. Our reading:
anchors of half the size (16 to 256 pixels, not 32 to 512), in the usual three proportions, and two
transposed convolutions for one (masks of 56 x 56 pixels, not 28 x 28).

All parts are torchvision's (BSD licence). We leave out its resizing and normalising of images,
which are ours elsewhere, and add what a network of this library has: logits for every pixel.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor, nn

from renal_utils.labels import IGNORE_ID
from renal_utils.models.blocks import check_input
from renal_utils.models.pretrained import load_encoder

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101")
LEVELS = 5  # of the feature pyramid: 1/4 to 1/32 of the image, and one of half that
SURE = 1 - 1e-6  # the highest probability; its log-odds are 13.8


class Detections(NamedTuple):
    """The objects found in one image, the surest first.

    Attributes:
        boxes_px: Left, top, right and bottom edge of each, in pixels of the image.
        classes: Class id of each, 1 or more.
        scores: How sure the network is of each, 0 to 1.
        masks: Probability of each pixel to belong to the object, 0 to 1; 0 outside its box.
    """

    boxes_px: Float[Tensor, "N 4"]
    classes: Int64[Tensor, " N"]
    scores: Float[Tensor, " N"]
    masks: Float[Tensor, "N H W"]


class MaskRCNN(nn.Module):
    """ResNet with a feature pyramid, proposals of boxes, and heads for class, box and mask.

    44,237,915 parameters for one class; 43,975,515 with torchvision's single transposed
    convolution. The size of the anchors costs none. Sides must be multiples of 32.

    ``detect`` gives the objects. ``forward`` merges them, so that the network can be compared: at
    each pixel and class, the largest of all objects' min(score, mask probability). Cut at any
    threshold, this is the union of the masks, cut there, of the objects that are at least as sure.
    Its log-odds are the logits; with several classes channel 0, the background, has logit 0.

    It learns from objects, by ``losses``, in training mode; ``forward`` and ``detect`` are for
    evaluation mode. Where the truth has classes only, number its connected components first.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``): 1, or background included.
        encoder: One of ``ENCODERS``; He et al. use the last two, torchvision ResNet-50.
        encoder_weights: None for random weights, ``"imagenet"`` for those of torchvision's ResNet.
        anchors_px: Side of the square anchor at each of the five levels, finest first.
        deconvolutions: Transposed convolutions of the mask branch; each doubles the masks' side.
        width: Channels of the pyramid and the mask branch.
        hidden_width: Features of the head for class and box.
        max_objects: The surest so many of an image are kept.

    Raises:
        ValueError: If an option makes no sense, or no such weights exist.
        ConnectionError: If the weights are not in the cache and cannot be fetched.
    """

    size_multiple = 32

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        anchors_px: Sequence[int] = (16, 32, 64, 128, 256),
        deconvolutions: int = 2,
        width: int = 256,
        hidden_width: int = 1024,
        max_objects: int = 100,
    ) -> None:
        super().__init__()
        _check_options(encoder, anchors_px, deconvolutions, width, hidden_width, max_objects)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.kinds = max(1, num_classes - 1)  # classes that objects can have
        self.encoder = _pyramid(encoder, in_channels, width)
        if encoder_weights is not None:
            load_encoder(self.encoder.body, encoder, encoder_weights, in_channels=in_channels)
        self.proposer, self.heads = _detector(
            self.encoder,
            anchors_px,
            hidden_width,
            mask_branch(width, self.kinds + 1, deconvolutions=deconvolutions),
            max_objects,
        )

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel, in evaluation mode.

        Raises:
            ValueError: If a side is no multiple of 32.
            RuntimeError: In training mode.
        """
        merged = torch.stack([self._merge(o, image.shape[-2:]) for o in self._find(image)])
        logits = merged.clamp(1 - SURE, SURE).logit()
        if self.num_classes == 1:
            return logits
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)[:, : self.num_classes]

    def detect(self, image: Float[Tensor, "B C H W"]) -> list[Detections]:
        """Return the objects of each image, in evaluation mode.

        Raises:
            ValueError: If a side is no multiple of 32.
            RuntimeError: In training mode.
        """
        return [
            Detections(
                objects["boxes"],
                objects["labels"],
                objects["scores"],
                paste(objects["masks"], objects["boxes"], image.shape[-2:]),
            )
            for objects in self._find(image)
        ]

    def losses(
        self,
        image: Float[Tensor, "B C H W"],
        instances: Int[Tensor, "B H W"],
        classes: Int64[Tensor, "B H W"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the five losses of a batch, to be added; in training mode.

        Args:
            image: The batch.
            instances: Object ids; 0 is background.
            classes: Class ids; an object has the one that most of its pixels have. None: all 1.
                Objects of class 255 are left out, and what is found there counts as wrong:
                torchvision's losses know no places to ignore.

        Returns:
            ``loss_objectness`` and ``loss_rpn_box_reg`` of the proposals, ``loss_classifier``,
            ``loss_box_reg`` and ``loss_mask`` of the objects.

        Raises:
            ValueError: If a side is no multiple of 32, or an object has no class of the network's.
            RuntimeError: In evaluation mode.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        if not self.training:
            raise RuntimeError("mask_rcnn has losses in training mode only; call train() first")
        if classes is None and self.kinds > 1:
            raise ValueError(f"objects have {self.kinds} classes here; give classes, a class map")
        maps = [None] * len(image) if classes is None else list(classes)
        truths = [self._truth(i, c) for i, c in zip(instances, maps, strict=True)]
        features, images, sizes = self._see(image)
        with torch.autocast(image.device.type, enabled=False):
            boxes, of_proposals = self.proposer(images, features, truths)
            _, of_objects = self.heads(features, boxes, sizes, truths)
        return of_proposals | of_objects

    def _find(self, image: Tensor) -> list[dict[str, Tensor]]:
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        if self.training:
            raise RuntimeError(
                "mask_rcnn learns from objects, not from pixels: in training mode call "
                "losses(image, instances); to predict call eval() first"
            )
        features, images, sizes = self._see(image)
        with torch.autocast(image.device.type, enabled=False):
            boxes, _ = self.proposer(images, features)
            return self.heads(features, boxes, sizes)[0]

    def _see(self, image: Tensor) -> tuple[dict[str, Tensor], Any, list[tuple[int, int]]]:
        """Return the pyramid's maps; boxes need full precision, so all after it has that."""
        from torchvision.models.detection.image_list import ImageList

        features = {name: part.float() for name, part in self.encoder(image).items()}
        sizes = [(image.shape[-2], image.shape[-1])] * len(image)
        return features, ImageList(image, sizes), sizes

    def _merge(self, objects: dict[str, Tensor], size: Sequence[int]) -> Tensor:
        merged = objects["masks"].new_zeros(self.kinds, *size)
        parts = (objects["boxes"], objects["labels"], objects["scores"], objects["masks"])
        for box, label, score, mask in zip(*parts, strict=True):  # one at a time: they are large
            probability = paste(mask[None], box[None], size)[0].minimum(score)
            merged[label - 1] = merged[label - 1].maximum(probability)
        return merged

    def _truth(self, instances: Tensor, classes: Tensor | None) -> dict[str, Tensor]:
        from torchvision.ops import masks_to_boxes

        ids = instances.unique()
        masks = instances == ids[ids != 0, None, None]
        labels = [1 if classes is None else int(classes[mask].mode().values) for mask in masks]
        wrong = sorted({label for label in labels if not 1 <= label <= self.kinds} - {IGNORE_ID})
        if wrong:
            raise ValueError(
                f"an object has the class {wrong[0]}, but the network's are 1 to {self.kinds} "
                f"(and {IGNORE_ID}, to leave it out); do the two maps belong together?"
            )
        kinds = torch.tensor(labels, dtype=torch.int64, device=masks.device)
        masks, kinds = masks[kinds != IGNORE_ID], kinds[kinds != IGNORE_ID]
        boxes = masks_to_boxes(masks).float()
        boxes[:, 2:] += 1  # to the far edge of the last pixel
        return {"boxes": boxes, "labels": kinds, "masks": masks.to(torch.uint8)}


def paste(
    masks: Float[Tensor, "N 1 M M"], boxes_px: Float[Tensor, "N 4"], size: Sequence[int]
) -> Float[Tensor, "N H W"]:
    """Return masks of one size as masks of the image, each enlarged to its box.

    Args:
        masks: Probabilities within the boxes.
        boxes_px: Left, top, right and bottom edges.
        size: Height and width of the image.
    """
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    return paste_masks_in_image(masks, boxes_px, (size[0], size[1]))[:, 0]


def number_objects(found: Detections, *, threshold: float = 0.5) -> Int32[Tensor, "H W"]:
    """Return an instance map; where objects overlap, the surest has the pixel.

    Args:
        found: The objects of one image.
        threshold: Objects less sure are left out, and pixels less probable.
    """
    ids = torch.zeros(found.masks.shape[1:], dtype=torch.int32, device=found.masks.device)
    for number in range(int((found.scores >= threshold).sum()), 0, -1):
        ids[found.masks[number - 1] >= threshold] = number
    return ids


def mask_branch(width: int, classes: int, *, deconvolutions: int) -> nn.Sequential:
    """Return the last layers of the mask branch: they double the side, then score each class.

    256 -> 256 channels: 262,400 parameters a transposed convolution.

    Args:
        width: Channels that come in.
        classes: Classes of objects, background included.
        deconvolutions: How often the side is doubled.
    """
    layers: list[nn.Module] = []
    for _ in range(deconvolutions):
        layers += [nn.ConvTranspose2d(width, width, 2, stride=2), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(width, classes, 1))
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*layers)


def _pyramid(name: str, in_channels: int, width: int) -> nn.Module:
    """Return torchvision's ResNet, without its classifier, under a feature pyramid."""
    from torchvision.models import get_model  # imported here: it takes a second
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    resnet = get_model(name, weights=None)
    if in_channels != 3:
        resnet.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    stages = {f"layer{i + 1}": str(i) for i in range(4)}
    return BackboneWithFPN(resnet, stages, [resnet.inplanes >> i for i in (3, 2, 1, 0)], width)


def _detector(
    encoder: Any,
    anchors_px: Sequence[int],
    hidden_width: int,
    masks: nn.Sequential,
    max_objects: int,
) -> tuple[nn.Module, nn.Module]:
    """Return torchvision's proposals and heads, with the parts that are given."""
    from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

    width = encoder.out_channels
    whole = TorchvisionMaskRCNN(
        encoder,
        rpn_anchor_generator=AnchorGenerator(
            tuple((side,) for side in anchors_px), ((0.5, 1.0, 2.0),) * LEVELS
        ),
        box_head=TwoMLPHead(7 * 7 * width, hidden_width),
        box_predictor=FastRCNNPredictor(hidden_width, masks[-1].out_channels),
        box_detections_per_img=max_objects,
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=masks,
    )
    return whole.rpn, whole.roi_heads


def _check_options(encoder: str, anchors_px: Sequence[int], *counts: int) -> None:
    if encoder not in ENCODERS:
        raise ValueError(f"mask_rcnn has no encoder {encoder!r}; known: {', '.join(ENCODERS)}")
    if len(anchors_px) != LEVELS or min(anchors_px) < 1:
        raise ValueError(f"anchors_px must be {LEVELS} positive numbers, not {tuple(anchors_px)}")
    if min(counts) < 1:
        raise ValueError(
            "deconvolutions, width, hidden_width and max_objects must be at least 1, not "
            + ", ".join(map(str, counts))
        )
