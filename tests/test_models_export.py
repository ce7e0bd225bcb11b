"""torch.export, which ONNX is made from, and torch.compile give the logits that a network gives.

Each takes seconds, so a few kinds of network are always tried and the others are marked slow.
"""

import importlib.util

import jaxtyping
import pytest
import torch
from test_models import NAMES, built

# The networks that cannot, and why. The tests expect them to fail, so that the list stays true;
# docs/networks.md has the same list.
CANNOT_EXPORT = {
    "mask_rcnn": "how many objects it finds depends on the values of an image, and it draws each"
}
CANNOT_COMPILE_WHOLE = dict(CANNOT_EXPORT)

ALWAYS = ("unet", "variable_unet", "lsu_net", "mask_rcnn")


def trying(cannot):
    for name in NAMES:
        marks = [] if name in ALWAYS else [pytest.mark.slow]
        if name in cannot:
            marks.append(pytest.mark.xfail(strict=True, reason=cannot[name]))
        yield pytest.param(name, marks=marks)


@pytest.fixture(autouse=True)
def _without_type_checks():
    """Other tests check the shapes; to trace each check takes longer than to trace the network."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


def network_and_image(name):
    model = built(name).eval()
    return model, torch.randn(1, 3, 2 * model.size_multiple, 2 * model.size_multiple)


@pytest.mark.parametrize("name", list(trying(CANNOT_EXPORT)))
@torch.no_grad()
def test_an_exported_network_gives_the_same_logits(name):
    model, image = network_and_image(name)
    program = torch.export.export(model, (image,))
    torch.testing.assert_close(program.module()(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(trying(CANNOT_COMPILE_WHOLE)))
@torch.no_grad()
def test_a_compiled_network_is_one_graph_and_gives_the_same_logits(name):
    # the eager backend: what is compiled is found and cut out, and run by torch as it is; a backend
    # that makes machine code needs a C++ compiler
    model, image = network_and_image(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_detector_is_compiled_in_pieces_and_finds_the_same():
    model, image = network_and_image("mask_rcnn")
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))),
    reason="onnx and onnxscript are not installed; torch.export, the step before, is tested above",
)
@torch.no_grad()
def test_an_exported_network_becomes_an_onnx_model():
    model, image = network_and_image("unet")
    program = torch.onnx.export(torch.export.export(model, (image,)), dynamo=True)
    assert program.model.graph.inputs and program.model.graph.outputs
