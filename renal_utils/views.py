"""Several answers for one image: mirrored and turned views, several networks, and their spread.

Tissue has no up and no left, so a network that is shown the eight mirrored and turned views of a
window should answer the same in each. It never quite does. The mean of its answers, each turned
back, is steadier than one of them, and turns with the image exactly. Where the answers differ, the
network does not know: their standard deviation is a map of that.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from renal_utils.prediction import Predict, identity_of

# (mirror left and right first, then quarter turns): the symmetries of a square, those that keep
# rows as rows first, so that the first 1, 2, 4 and 8 are groups of their own.
VIEWS = ((False, 0), (True, 0), (False, 2), (True, 2), (False, 1), (True, 1), (False, 3), (True, 3))
VIEW_COUNTS = (1, 2, 4, 8)
Maps = Float[Tensor, "B C H W"]


def turn(maps: Float[Tensor, "*batch H W"], view: int) -> Float[Tensor, "*batch h w"]:
    """Return images as one of ``VIEWS`` shows them; odd quarter turns swap height and width."""
    mirror, turns = VIEWS[view]
    return torch.rot90(maps.flip(-1) if mirror else maps, turns, (-2, -1))


def turn_back(maps: Float[Tensor, "*batch H W"], view: int) -> Float[Tensor, "*batch h w"]:
    """Undo ``turn``."""
    mirror, turns = VIEWS[view]
    turned = torch.rot90(maps, -turns, (-2, -1))
    return turned.flip(-1) if mirror else turned


@dataclass(frozen=True)
class MeanPredictor:
    """The mean of predictors over views of an image; see ``average_views``.

    Attributes:
        predictors: Each maps normalised images to probabilities.
        flips: How many of ``VIEWS`` each of them is shown.
        has_spread: Whether one more channel follows those of the classes: the spread.
        identity: Hash of all of it, as ``Predictor.identity``.
    """

    predictors: tuple[Predict, ...]
    flips: int
    has_spread: bool
    identity: str

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Maps:
        """Return the mean probabilities, and the spread behind them where ``has_spread``.

        The spread at a pixel is the standard deviation over all answers (divided by their number)
        of the probability of a class, of the class where it is greatest: 0 to 0.5.
        """
        count = len(self.predictors) * self.flips
        total = squares = torch.zeros(())
        for predict in self.predictors:
            for view in range(self.flips):
                answer = turn_back(predict(turn(images, view)), view).double()
                total, squares = total + answer, squares + answer * answer
        mean = total / count
        if not self.has_spread:
            return mean.float()
        variance = (squares / count - mean * mean).clamp(min=0)
        spread = variance.sqrt().amax(dim=1, keepdim=True)
        return torch.cat([mean, spread], dim=1).float()


def average_views(
    predictors: Predict | Sequence[Predict], *, flips: int = 8, spread: bool = False
) -> MeanPredictor:
    """Make one predictor that averages several views, several networks, or both.

    Args:
        predictors: One, or several of the same classes (checkpoints of several seeds, say), as
            ``make_predictor`` makes them.
        flips: Views that each is shown: 1 (as it is), 2 (mirrored left to right too), 4 (and top to
            bottom), 8 (and quarter turns). Time grows with it.
        spread: Give the spread of the answers as one more channel; ``stitch_slide`` writes it as
            a map of the slide.

    Raises:
        ValueError: If there is no predictor, the number of views is not known, or a spread is asked
            of a single answer.
    """
    members = (predictors,) if callable(predictors) else tuple(predictors)
    if not members:
        raise ValueError("no predictor was given; expected one or more")
    if flips not in VIEW_COUNTS:
        raise ValueError(f"flips must be one of {VIEW_COUNTS}, not {flips}")
    if spread and len(members) * flips == 1:
        raise ValueError("one answer has no spread; take flips=8, or several predictors")
    told = [identity_of(member) for member in members]
    names = told[0] if len(told) == 1 else hashlib.sha256("|".join(told).encode()).hexdigest()
    shown = f"mean of {len(members)} x {flips} views" + (" with spread" if spread else "")
    return MeanPredictor(members, flips, spread, f"{names} {shown}")
