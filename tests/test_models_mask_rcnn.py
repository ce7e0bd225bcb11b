"""Mask R-CNN: beside torchvision's own whole, its truths, and the map its objects merge into."""

import pytest
import torch

from renal_utils.models.build import build_model
from renal_utils.models.mask_rcnn import Detections, MaskRCNN, mask_branch, number_objects

SMALL = {"encoder": "resnet18", "width": 8, "hidden_width": 16}
SIZE = (32, 64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model("mask_rcnn", **SMALL)


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def instances():
    ids = torch.zeros(2, *SIZE, dtype=torch.int32)
    ids[0, 4:20, 4:20] = 5
    ids[0, 20:30, 30:60] = 2
    ids[1, 31, 63] = 9  # a single pixel in the corner
    return ids


def torchvisions_whole(ours):
    """Torchvision's network of the same parts, which neither resizes nor normalises."""
    from torchvision.models.detection import MaskRCNN as Whole

    whole = Whole(
        ours.encoder,
        num_classes=2,
        min_size=SIZE[0],
        max_size=SIZE[1],
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        _skip_resize=True,  # in training; in evaluation the sizes above keep the image's
    )
    whole.rpn, whole.roi_heads = ours.proposer, ours.heads
    return whole


def test_it_detects_what_torchvisions_whole_detects(network, image):
    network.eval()
    with torch.inference_mode():
        found = network.detect(image)
        expected = torchvisions_whole(network).eval()(list(image))
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours.scores) > 5
        torch.testing.assert_close(ours.boxes_px, theirs["boxes"])
        torch.testing.assert_close(ours.scores, theirs["scores"])
        torch.testing.assert_close(ours.masks, theirs["masks"][:, 0])
        assert torch.equal(ours.classes, theirs["labels"])


def test_its_losses_are_those_of_torchvisions_whole(network, image, instances):
    objects = [
        [((4, 4, 20, 20), 5), ((30, 20, 60, 30), 2)],
        [((63, 31, 64, 32), 9)],
    ]
    truths = [
        {
            "boxes": torch.tensor([box for box, _ in some], dtype=torch.float32),
            "labels": torch.ones(len(some), dtype=torch.int64),
            "masks": torch.stack([(ids == number).to(torch.uint8) for _, number in some]),
        }
        for some, ids in zip(objects, instances, strict=True)
    ]
    for truth in truths:  # ours come in the order of their ids
        truth.update({key: value.flip(0) for key, value in truth.items()})
    network.train()
    whole = torchvisions_whole(network).train()
    torch.manual_seed(3)  # both draw the boxes that they learn from
    expected = whole(list(image), truths)
    torch.manual_seed(3)
    found = network.losses(image, instances)
    assert set(found) == set(expected) and len(found) == 5
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.5])
def test_the_merged_map_cut_anywhere_is_the_union_of_the_objects_cut_there(
    network, image, threshold
):
    network.eval()
    with torch.inference_mode():
        merged = network(image).sigmoid()[:, 0] >= threshold
        for found, cut in zip(network.detect(image), merged, strict=True):
            sure = found.masks[found.scores >= threshold] >= threshold
            assert torch.equal(cut, sure.any(dim=0))
    assert 0 < merged.float().mean() < 1 or threshold == 0.5


def test_a_class_and_background_say_the_same_as_a_class_alone(network, image):
    network.eval()
    both = build_model("mask_rcnn", num_classes=2, **SMALL).eval()
    both.load_state_dict(network.state_dict())
    with torch.inference_mode():
        alone, together = network(image), both(image)
    torch.testing.assert_close(together.softmax(dim=1)[:, 1:], alone.sigmoid())


def test_of_several_classes_the_one_more_probable_than_a_half_wins(image):
    torch.manual_seed(0)
    model = build_model("mask_rcnn", num_classes=4, **SMALL).eval()
    with torch.inference_mode():
        logits = model(image)
    assert torch.equal(logits[:, 0], torch.zeros_like(logits[:, 0]))
    probabilities = logits[:, 1:].sigmoid()
    expected = torch.where(probabilities.amax(1) > 0.5, probabilities.argmax(1) + 1, 0)
    assert torch.equal(logits.argmax(dim=1), expected)


def test_an_image_without_objects_is_background_and_finite(network, image, monkeypatch):
    network.eval()
    monkeypatch.setattr(network.heads, "score_thresh", 1.1)
    with torch.inference_mode():
        assert [len(found.scores) for found in network.detect(image)] == [0, 0]
        logits = network(image)
    assert logits.shape == (2, 1, *SIZE)
    assert logits.isfinite().all() and logits.max() < -13


def test_an_objects_box_reaches_to_the_far_edge_of_its_last_pixel(network, instances):
    truth = network._truth(instances[0], None)
    assert truth["boxes"].tolist() == [[30, 20, 60, 30], [4, 4, 20, 20]]
    assert network._truth(instances[1], None)["boxes"].tolist() == [[63, 31, 64, 32]]
    assert torch.equal(truth["masks"][1].bool(), instances[0] == 5)


def test_an_object_has_the_class_of_most_of_its_pixels_and_255_leaves_it_out(instances):
    with torch.device("meta"):
        model = MaskRCNN(3, 4, **SMALL)
    classes = torch.zeros(SIZE, dtype=torch.int64)
    classes[instances[0] == 5] = 3
    classes[4:6, 4:20] = 1  # less than half of the object
    classes[instances[0] == 2] = 255
    truth = model._truth(instances[0], classes)
    assert truth["labels"].tolist() == [3]
    assert truth["boxes"].tolist() == [[4, 4, 20, 20]]
    with pytest.raises(ValueError, match=r"class 0, but the network's are 1 to 3 \(and 255"):
        model._truth(instances[0], torch.zeros_like(classes))


def test_losses_of_a_batch_without_objects_are_finite(network, image, instances):
    network.train()
    losses = network.losses(image, torch.zeros_like(instances))
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_mask"] == losses["loss_box_reg"] == 0 < losses["loss_classifier"]


def test_objects_are_asked_for_in_training_and_pixels_in_evaluation(network, image, instances):
    with pytest.raises(RuntimeError, match=r"learns from objects.*losses\(image, instances\)"):
        network.train()(image)
    with pytest.raises(RuntimeError, match="call train"):
        network.eval().losses(image, instances)
    several = MaskRCNN(num_classes=3, **SMALL)
    with pytest.raises(ValueError, match="objects have 2 classes here; give classes"):
        several.losses(image, instances)


def test_the_losses_in_bfloat16_are_close_to_those_in_float32(network, image, instances):
    network.train()
    torch.manual_seed(3)
    expected = network.losses(image, instances)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.losses(image, instances)
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.1, atol=0.05)


@pytest.mark.slow
def test_it_learns_to_find_bright_squares():
    torch.manual_seed(0)
    ids = torch.zeros(2, 64, 64, dtype=torch.int32)
    ids[0, 8:28, 8:28], ids[0, 36:56, 30:50], ids[1, 20:40, 20:40] = 1, 2, 3
    image = 0.1 * torch.randn(2, 3, 64, 64) + 2.0 * (ids > 0)[:, None]
    sizes = {"encoder": "resnet18", "width": 16, "hidden_width": 32}
    model = MaskRCNN(anchors_px=(8, 16, 24, 32, 48), **sizes)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.losses(image, ids).values()).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        found = model(image)[:, 0] > 0
        objects = [number_objects(some) for some in model.detect(image)]
    assert 2 * (found & (ids > 0)).sum() / (found.sum() + (ids > 0).sum()) > 0.8
    assert [int(some.max()) for some in objects] == [2, 1]


def test_the_surest_object_has_the_pixel_and_unsure_ones_none():
    masks = torch.zeros(3, 4, 6)
    masks[0, :, :2], masks[1, :, 1:4], masks[2, :, 4:] = 0.9, 0.8, 1.0
    masks[1, 0] *= 0.5
    found = Detections(
        torch.zeros(3, 4), torch.ones(3, dtype=torch.int64), torch.tensor([0.9, 0.6, 0.4]), masks
    )
    assert number_objects(found)[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert number_objects(found)[1].tolist() == [1, 1, 2, 2, 0, 0]
    assert number_objects(found, threshold=0.3)[1].tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("deconvolutions", [1, 2, 3])
def test_each_transposed_convolution_doubles_the_masks(deconvolutions):
    branch = mask_branch(4, 3, deconvolutions=deconvolutions)
    side = 14 * 2**deconvolutions
    assert branch(torch.randn(5, 4, 14, 14)).shape == (5, 3, side, side)


def test_anchors_cover_the_sides_asked_for():
    model = build_model("mask_rcnn", anchors_px=(10, 20, 30, 40, 60), **SMALL)
    anchors = model.proposer.anchor_generator.cell_anchors
    sides = [(box[:, 2:] - box[:, :2]).prod(dim=1).sqrt() for box in anchors]
    for found, side in zip(sides, (10, 20, 30, 40, 60), strict=True):
        torch.testing.assert_close(found, torch.full_like(found, side), rtol=0.1, atol=0)


def test_encoder_weights_arrive_where_torchvision_has_them(monkeypatch):
    from torchvision.models import get_model

    with torch.device("meta"):
        state = get_model("resnet18", weights=None).state_dict()
    sevens = {key: torch.full(v.shape, 7.0).to(v.dtype) for key, v in state.items()}
    monkeypatch.setattr("renal_utils.models.pretrained.torchvision_weights", lambda *names: sevens)
    model = build_model("mask_rcnn", encoder_weights="imagenet", **SMALL)
    body = model.encoder.body.state_dict()
    assert list(body) == [key for key in state if not key.startswith("fc.")]
    assert all((value == 7).all() for value in body.values())
    with pytest.raises(ValueError, match="of resnet18 are for images of 3 channels, not 1"):
        build_model("mask_rcnn", in_channels=1, encoder_weights="imagenet", **SMALL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "vgg19"}, "no encoder 'vgg19'; known: resnet18, "),
        ({"anchors_px": (32, 64)}, r"5 positive numbers, not \(32, 64\)"),
        ({"anchors_px": (0, 8, 16, 32, 64)}, "5 positive numbers"),
        ({"deconvolutions": 0}, "at least 1, not 0, 256"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build_model("mask_rcnn", **options)
