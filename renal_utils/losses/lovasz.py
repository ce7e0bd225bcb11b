"""Lovasz losses: surrogates of the Jaccard index that are convex in each pixel's error.

Berman, Triki and Blaschko, "The Lovasz-Softmax loss" (CVPR 2018). Errors are sorted, the largest
first; each is multiplied by how much the Jaccard loss rises when its pixel joins the wrong ones.
Where every pixel is either surely right or exactly wrong the sum is the Jaccard loss itself.

Segmentation Models PyTorch's ``LovaszLoss`` gives the same with ReLU (tested). Ours differs in two
ways: the steps of the Jaccard loss are computed as they are, not as differences of numbers close
to each other; and an image without a pixel that counts leaves the mean instead of counting as 0.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from renal_utils.labels import IGNORE_ID
from renal_utils.losses.pixels import (
    ClassIds,
    Logits,
    Scalar,
    check_channels,
    full_precision,
    probabilities_and_truth,
    valid_pixels,
)

Errors = Float[Tensor, "R P"]
Flags = Bool[Tensor, "R P"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "elu": lambda errors: functional.elu(errors) + 1,
}


def jaccard_steps(truth: Flags, valid: Flags) -> Float[Tensor, "R P"]:
    """Return how much the Jaccard loss rises as one pixel after the other becomes wrong.

    A true pixel that is missed takes one from the intersection and leaves the union ``u``: the loss
    rises by ``1 / u``. A false one leaves the intersection ``i`` and adds one to the union: it
    rises by ``i / (u (u - 1))``. Without any true pixel the first false one costs all, 1.

    Args:
        truth: Of pixels in the order in which they become wrong; one row is one image or class.
        valid: Whether the pixel counts; those that do stand before those that do not.

    Returns:
        The steps, in float32; 0 for pixels that do not count. A row adds up to 1, where one counts.
    """
    positives = truth.sum(dim=1, keepdim=True)
    intersection = positives - truth.cumsum(dim=1)
    union = positives + (valid & ~truth).cumsum(dim=1)
    below = union.float() * (union - 1).clamp(min=1)
    steps = torch.where(truth, 1 / union.clamp(min=1), intersection / below) * valid
    first = (torch.arange(truth.shape[1], device=truth.device) == 0) & valid
    return torch.where(positives == 0, first.float(), steps)


def lovasz_extension(
    errors: Errors, truth: Flags, valid: Flags, *, activation: str = "relu"
) -> Float[Tensor, " R"]:
    """Return the Lovasz extension of the Jaccard loss, at ``activation(errors)``, of each row.

    Args:
        errors: How wrong each pixel is; 0 and less is right.
        truth: Whether a pixel is foreground.
        valid: Whether it counts.
        activation: One of ``ACTIVATIONS``: ``relu``, or ``elu`` for ELU + 1.
    """
    errors, order = errors.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True)
    valid = valid.gather(1, order)
    steps = jaccard_steps(truth.gather(1, order) & valid, valid)
    return (ACTIVATIONS[activation](errors) * steps).sum(dim=1)


class LovaszHinge(nn.Module):
    """Lovasz hinge of one class on background, with ReLU or ELU + 1, symmetric or not.

    The error of a pixel is ``1 - logit * (2 t - 1)``. The defaults are the published loss. The
    HuBMAP thesis (section 5.4) takes ``activation="elu", symmetric=True``, which is the name
    ``symmetric_lovasz``: with ReLU a pixel's slope ends once its logit is 1 on the right side, that
    is at a probability of 0.27 for background; ELU + 1 goes on pushing, and is never quite 0.

    Args:
        activation: Of the sorted errors: ``relu`` or ``elu`` (ELU + 1).
        symmetric: Average with the loss of the background: negated logits, negated truth.
        per_image: Mean of the images' losses, of those that have a pixel that counts. False treats
            the batch as one image.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(
        self,
        *,
        activation: str = "relu",
        symmetric: bool = False,
        per_image: bool = True,
        ignore_index: int = IGNORE_ID,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"no activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.activation, self.symmetric = activation, symmetric
        self.per_image, self.ignore_index = per_image, ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is more than one channel, or an id other than 0, 1 and ignored.
        """
        check_channels(logits, one=True, name="LovaszHinge", instead="lovasz_softmax")
        valid = valid_pixels(logits, target, highest=1, ignore_index=self.ignore_index)
        rows = len(logits) if self.per_image else 1
        logits = full_precision(logits).reshape(rows, -1)
        truth, valid = (target == 1).reshape(rows, -1), valid.reshape(rows, -1)
        loss = self._hinge(logits, truth, valid)
        if self.symmetric:
            loss = (loss + self._hinge(-logits, ~truth, valid)) / 2
        return _mean_where(loss, valid.any(dim=1))

    def _hinge(self, logits: Errors, truth: Flags, valid: Flags) -> Float[Tensor, " R"]:
        errors = 1 - torch.where(truth, logits, -logits)
        return lovasz_extension(errors, truth, valid, activation=self.activation)


class LovaszSoftmax(nn.Module):
    """Lovasz-softmax of two or more classes: the error of a pixel is ``|t - p|`` of each class.

    Args:
        per_image: Mean of the images' losses. False treats the batch as one image, which is what a
            data set's Jaccard index does.
        ignore_index: Id of the pixels that do not count.
    """

    def __init__(self, *, per_image: bool = False, ignore_index: int = IGNORE_ID) -> None:
        super().__init__()
        self.per_image, self.ignore_index = per_image, ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the mean over the classes that occur; of each image, if so chosen.

        Raises:
            ValueError: If there is only one channel, or an id that has none.
        """
        check_channels(logits, one=False, name="LovaszSoftmax", instead="lovasz_hinge")
        parts = probabilities_and_truth(logits, target, ignore_index=self.ignore_index)
        probabilities, truth, valid = (part.expand_as(logits) for part in parts)
        images, classes = (len(logits) if self.per_image else 1), logits.shape[1]
        if not self.per_image:  # one image of all pixels: B C H W -> 1 C B*H W
            probabilities, truth, valid = (
                part.transpose(0, 1) for part in (probabilities, truth, valid)
            )
        rows = [part.reshape(images * classes, -1) for part in (probabilities, truth, valid)]
        loss = lovasz_extension((rows[1].to(rows[0].dtype) - rows[0]).abs(), rows[1], rows[2])
        occurs = rows[1].any(dim=1).view(images, classes)
        by_image = (loss.view(images, classes) * occurs).sum(1) / occurs.sum(1).clamp(min=1)
        return _mean_where(by_image, occurs.any(dim=1))


def _mean_where(loss: Float[Tensor, " R"], counted: Bool[Tensor, " R"]) -> Scalar:
    return (loss * counted).sum() / counted.sum().clamp(min=1)
