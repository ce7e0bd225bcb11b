"""Heat maps: a classifier of windows, slid over a slide, tells where the objects are.

After Kannan et al. (2019, "Segmentation of glomeruli within trichrome images using deep learning",
Kidney International Reports 4:955): a classifier of images (Inception v3 there, into no glomerulus,
normal or partially sclerosed, globally sclerosed) looks at overlapping windows; its confidence is
drawn as a heat map, which is binarised, and parted by distance transform and watershed
(``cleaning.split_touching``). It takes a label a window and no outline at all.

Their window and stride are not known to us; here they are arguments. So is the classifier: any
function from images to probabilities. The default network is small and ours.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from renal_utils.augment import to_tensor
from renal_utils.labels import IGNORE_ID
from renal_utils.windows import plan_windows

Classifier = Callable[[Float[Tensor, "B 3 P P"]], Float[Tensor, "B K"]]


class WindowNet(nn.Module):
    """A small classifier of windows: four 3x3 convolutions, each halving the size, then a mean.

    With the default width 97,938 parameters for two classes. Any window of 16 pixels or more.

    Args:
        num_classes: Classes of a window.
        width: Channels after the first convolution; each further one doubles them.
    """

    def __init__(self, num_classes: int = 2, *, width: int = 16) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, image: Float[Tensor, "B 3 P P"]) -> Float[Tensor, "B K"]:
        """Return the logits of each window."""
        return self.head(self.encoder(image).mean(dim=(2, 3)))


def inception_v3(num_classes: int = 2) -> nn.Module:
    """Return torchvision's Inception v3 with random weights (21,791,715 parameters, 3 classes).

    It takes windows of 75 pixels or more (299 in its own training) and nothing is downloaded; load
    ImageNet's weights into it yourself where you have them.

    Args:
        num_classes: Classes of a window.
    """
    from torchvision.models import inception_v3 as build  # here: a second on a cold start

    return build(weights=None, aux_logits=False, init_weights=False, num_classes=num_classes)


WINDOW_NETS: Mapping[str, Callable[[int], nn.Module]] = {
    "small": WindowNet,
    "inception_v3": inception_v3,
}


def build_window_net(name: str, num_classes: int = 2) -> nn.Module:
    """Return a classifier of windows with random weights.

    Raises:
        ValueError: If the name is unknown; the message lists the known ones.
    """
    if name not in WINDOW_NETS:
        raise ValueError(f"no window classifier {name!r}; known: {', '.join(WINDOW_NETS)}")
    return WINDOW_NETS[name](num_classes)


def label_windows(
    manifest: pd.DataFrame, *, empty_below: float | int, full_from: float | int
) -> Int64[np.ndarray, " N"]:
    """Return a class for each window of a manifest: 1 glomerulus, 0 none, 255 neither.

    Args:
        manifest: What ``cut_patches`` made; its ``positive_fraction`` decides.
        empty_below: Windows with a smaller share of glomerulus count as none.
        full_from: Windows from this share on count as glomerulus. What lies between shows a rim,
            and a person asked for yes or no would hesitate: it is left out of the training.

    Raises:
        ValueError: If the two shares are not in order, or a window has no truth.
    """
    if not 0 <= empty_below <= full_from <= 1:
        raise ValueError(
            f"empty_below {empty_below} and full_from {full_from} must ascend within 0 to 1"
        )
    share = manifest["positive_fraction"].to_numpy()
    if np.isnan(share).any():
        raise ValueError("a window has no truth, so it cannot be labelled; leave its image out")
    labels = np.full(len(share), IGNORE_ID, np.int64)
    labels[share < empty_below] = 0
    labels[share >= full_from] = 1
    return labels


def train_window_net(
    network: nn.Module,
    windows: UInt8[np.ndarray, "N P P 3"],
    labels: Int64[np.ndarray, " N"],
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> list[float]:
    """Train a classifier of windows in place, and return the loss of each step.

    A batch holds equally many windows of each class, each flipped and turned at random. Adam with
    one cycle of the learning rate; cross entropy.

    Args:
        network: Images to logits.
        windows: RGB.
        labels: Class of each; ``IGNORE_ID`` is left out.
        steps: Batches.
        batch_size: Windows a batch.
        learning_rate: The highest of the cycle.
        seed: Draws batches and turns (not the network's first weights).

    Raises:
        ValueError: If there is only one class to learn.
    """
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels[labels != IGNORE_ID])]
    if len(classes) < 2:
        raise ValueError(f"the windows show {len(classes)} classes; a classifier needs two or more")
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    network.train()
    losses = []
    for _ in range(steps):
        rows = np.concatenate([rng.choice(c, batch_size // len(classes)) for c in classes])
        images = torch.stack([to_tensor(_turned(windows[row], rng)) for row in rows])
        loss = cross_entropy(network(images), torch.from_numpy(labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def make_classifier(network: nn.Module) -> Classifier:
    """Return the network as a function from normalised images to probabilities."""
    network.eval()

    @torch.inference_mode()
    def classify(images: Float[Tensor, "B 3 P P"]) -> Float[Tensor, "B K"]:
        return network(images).softmax(dim=1)

    return classify


def heat_map(
    rgb: UInt8[np.ndarray, "H W 3"],
    classify: Classifier,
    *,
    window_px: int,
    stride_px: int,
    class_id: int = 1,
    batch_size: int = 256,
) -> Float32[np.ndarray, "H W"]:
    """Return at each pixel the mean probability of all windows that show it.

    Args:
        rgb: The image, of the scale that the classifier was trained at.
        classify: Normalised windows to probabilities, such as ``make_classifier`` returns.
        window_px: Side of a window.
        stride_px: Distance of neighbouring windows. A quarter of it costs sixteen times as much.
        class_id: Which class to draw.
        batch_size: Windows classified at once.

    Raises:
        ValueError: If the image is smaller than a window.
    """
    height, width = rgb.shape[:2]
    if window_px > min(height, width):
        raise ValueError(f"image is {height} x {width}, smaller than a window of {window_px} px")
    places = plan_windows((width, height), window_px, stride_px)
    image = to_tensor(rgb)
    sums, counts = np.zeros((2, height, width), np.float32)
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        views = [image[:, y : y + window_px, x : x + window_px] for x, y in batch.tolist()]
        found = classify(torch.stack(views))[:, class_id].tolist()
        for (x, y), probability in zip(batch.tolist(), found, strict=True):
            sums[y : y + window_px, x : x + window_px] += probability
            counts[y : y + window_px, x : x + window_px] += 1
    return sums / counts


def _turned(
    window: UInt8[np.ndarray, "P P 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "P P 3"]:
    turned = np.rot90(window, int(rng.integers(4)))
    return np.ascontiguousarray(turned[:, ::-1] if rng.random() < 0.5 else turned)
