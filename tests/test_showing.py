import math

import pytest

from renal_utils import showing
from renal_utils.models.unet import UNet
from renal_utils.showing import show_source


def test_a_class_is_shown_as_it_stands_in_its_file():
    shown = show_source(UNet)
    assert repr(shown).startswith("# renal_utils.models.unet\nclass UNet(nn.Module):\n    ")
    assert shown.code.endswith("return self.head(features)")
    assert shown._repr_markdown_() == f"```python\n{shown!r}\n```"


def test_a_method_is_moved_to_the_left_margin():
    shown = show_source(UNet.forward)
    assert shown.code.startswith("def forward(self")
    assert "\n    check_input(" in shown.code


def test_a_module_is_shown_whole():
    assert show_source(showing).code.startswith('"""Show the library')


@pytest.mark.parametrize("thing", [math.sqrt, int])
def test_what_has_no_source_is_refused(thing):
    with pytest.raises(ValueError, match="no source"):
        show_source(thing)
