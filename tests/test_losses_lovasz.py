import pytest
import torch

from renal_utils.labels import IGNORE_ID
from renal_utils.losses import build_loss, jaccard_steps

EVERY_OPTION = [
    {"activation": activation, "symmetric": symmetric, "per_image": per_image}
    for activation in ("relu", "elu")
    for symmetric in (False, True)
    for per_image in (False, True)
]


def random_flags(seed, size, share=0.5):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share


def jaccard_loss(answer, truth):
    """One minus intersection over union of two masks; 0 of two empty ones."""
    union = int((answer | truth).sum())
    return 1 - int((answer & truth).sum()) / union if union else 0.0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_hinge_at_its_corners_is_the_jaccard_loss(seed, share):
    truth, wrong = random_flags(seed, (1, 5, 6), share), random_flags(seed + 10, (1, 5, 6), 0.3)
    right_side = truth * 2.0 - 1
    logits = torch.where(wrong, 0.0, 2 * right_side)  # errors of exactly 1, and of -1
    found = build_loss("lovasz_hinge")(logits[:, None], truth.long())
    assert found.item() == pytest.approx(jaccard_loss(truth ^ wrong, truth), abs=1e-6)


def test_lovasz_softmax_of_certain_answers_is_the_mean_jaccard_loss_of_the_classes_there():
    generator = torch.Generator().manual_seed(3)
    target, answer = (torch.randint(0, 3, (2, 6, 6), generator=generator) for _ in range(2))
    logits = torch.nn.functional.one_hot(answer, 4).permute(0, 3, 1, 2) * 200.0
    expected = sum(jaccard_loss(answer == c, target == c) for c in range(3)) / 3
    found = build_loss("lovasz_softmax")(logits, target)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_steps_are_differences_of_the_jaccard_loss():
    truth = torch.stack([random_flags(4, 40, share) for share in (0.1, 0.5, 0.9)])
    valid = (torch.arange(40) < 33).expand_as(truth)
    truth = truth & valid
    for row, steps in zip(truth, jaccard_steps(truth, valid), strict=True):
        assert steps.sum().item() == pytest.approx(1)
        wrong = torch.zeros(40, dtype=torch.bool)
        for pixel, step in enumerate(steps[:33].tolist()):
            before = jaccard_loss(row ^ wrong, row)
            wrong[pixel] = True
            assert step == pytest.approx(jaccard_loss(row ^ wrong, row) - before, abs=1e-6)


@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_the_symmetric_loss_of_the_negative_is_the_same(activation):
    truth = random_flags(6, (3, 4, 5), 0.2)
    logits = torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(6))
    target = truth.long()
    target[:, 0] = IGNORE_ID
    negative = torch.where(target == IGNORE_ID, target, 1 - target)
    loss = build_loss("lovasz_hinge", activation=activation, symmetric=True)
    torch.testing.assert_close(loss(-logits, negative), loss(logits, target))
    plain = build_loss("lovasz_hinge", activation=activation)
    assert plain(-logits, negative).item() != pytest.approx(plain(logits, target).item(), rel=0.01)


@pytest.mark.parametrize("options", EVERY_OPTION)
def test_an_image_without_labels_changes_nothing(options):
    logits = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    target = random_flags(7, (3, 4, 4)).long()
    target[1] = IGNORE_ID
    loss, labelled = build_loss("lovasz_hinge", **options), torch.tensor([0, 2])
    torch.testing.assert_close(loss(logits, target), loss(logits[labelled], target[labelled]))


def test_per_image_is_the_mean_of_the_images():
    logits = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(8))
    target = torch.randint(0, 4, (3, 4, 4), generator=torch.Generator().manual_seed(8))
    cases = [
        ("lovasz_hinge", logits[:, :1], target.clamp(max=1)),
        ("lovasz_softmax", logits, target),
    ]
    for name, x, t in cases:
        whole, each = (build_loss(name, per_image=flag) for flag in (False, True))
        images = torch.stack([whole(x[i : i + 1], t[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(each(x, t), images.mean())
        assert whole(x, t).item() != pytest.approx(images.mean().item(), rel=1e-3)


def test_elu_pushes_background_that_relu_leaves_alone():
    logits = torch.full((1, 1, 4, 4), -1.5, requires_grad=True)  # a probability of 0.18
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    slopes = {}
    for activation in ("relu", "elu"):
        loss = build_loss("lovasz_hinge", activation=activation)(logits, target)
        slopes[activation] = torch.autograd.grad(loss, logits)[0].sum().item()
    assert slopes["relu"] == 0
    assert slopes["elu"] == pytest.approx(0.6065, abs=1e-3)  # e^-0.5: errors are -0.5
