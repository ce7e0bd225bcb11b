import base64
import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from renal_utils import plots
from renal_utils.labels import GLOMERULI, IGNORE_ID, KIDNEY_TISSUES, SKY, VERMILION
from renal_utils.plots.style import alternative_text, figure_png


@pytest.fixture(autouse=True)
def _figures():
    with mpl.rc_context():
        plots.use_course_style()
        yield
    plt.close("all")


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)


@pytest.fixture
def labels():
    ids = np.zeros((60, 100), np.uint8)
    ids[20:40, 30:60] = 1
    return ids


@pytest.fixture
def history():
    epochs = pd.RangeIndex(1, 6, name="epoch")
    columns = {"train_loss": [5, 4, 3, 2, 1], "val_loss": [5, np.nan, 4, np.nan, 3]}
    return pd.DataFrame(columns, index=epochs)


def texts(ax):
    return [t.get_text() for t in ax.texts]


def legend(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


@pytest.mark.parametrize(
    ("width", "mpp", "text"),
    [
        (1000, 0.5, "100 µm"),
        (256, 0.5, "50 µm"),
        (10_000, 0.5, "1 mm"),
        (40_000, 0.25, "2 mm"),
        (100, 0.25, "5 µm"),
        (1000, None, "200 px"),
    ],
)
def test_the_scale_bar_is_as_long_as_it_says(width, mpp, text):
    ax = plots.show_image(np.zeros((50, width, 3), np.uint8), mpp=mpp)
    assert texts(ax) == [text]
    start, end = ax.lines[0].get_xdata()
    number, unit = text.split()
    microns = float(number) * (1000 if unit == "mm" else 1)
    assert (end - start) * (mpp or 1) == pytest.approx(microns)
    assert 0.1 * width < end - start < 0.5 * width
    assert -0.5 < start < end < width - 0.5


def test_an_absurd_scale_is_refused(rgb):
    with pytest.raises(ValueError, match="microns per pixel"):
        plots.show_image(rgb, mpp=0.0)


def test_the_axes_keep_the_coordinates_of_a_large_image():
    large = np.zeros((1200, 2000, 3), np.uint8)
    large[:600] = 255
    ax = plots.show_image(large)
    assert ax.get_xlim() == (-0.5, 1999.5)
    assert ax.get_ylim() == (1199.5, -0.5)
    assert max(drawn(ax).shape) < 1000
    assert drawn(ax)[0, 0, 0] == 255
    assert drawn(ax)[-1, 0, 0] == 0


def test_an_image_is_drawn_as_it_is(rgb):
    ax = plots.show_image(rgb, title="Noise")
    np.testing.assert_array_equal(drawn(ax), rgb)
    assert ax.get_title("left") == "Noise"


def test_drawing_leaves_its_arguments_alone(rgb, labels):
    before = rgb.copy(), labels.copy()
    plots.plot_overlay(rgb, labels, GLOMERULI)
    plots.plot_overlay(rgb, labels, GLOMERULI, outline=True)
    np.testing.assert_array_equal(rgb, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_every_picture_and_chart_draws_where_it_is_told(rgb, labels, history):
    _, axes = plt.subplots(2, 4, figsize=(16, 8))
    shares = pd.DataFrame({"background": [0.9], "glomerulus": [0.1]})
    table = pd.DataFrame({"diameter_um": [100.0, 120, 150]})
    axes = list(axes.flat)
    count = len(plt.get_fignums())
    found = [
        plots.show_image(rgb, ax=axes[0]),
        plots.plot_overlay(rgb, labels, GLOMERULI, ax=axes[1]),
        plots.plot_probability(np.zeros((9, 9), np.float32), ax=axes[2]),
        plots.plot_training(history, ax=axes[3]),
        plots.plot_class_shares(shares, GLOMERULI, ax=axes[4]),
        plots.plot_confusion(np.eye(2, dtype=int), GLOMERULI, ax=axes[5]),
        plots.plot_size_distribution(table, "diameter_um", ax=axes[6]),
        plots.add_scale_bar(axes[7], 0.5),
    ]
    assert found == axes
    assert len(plt.get_fignums()) == count


def test_a_filled_overlay_colours_its_class_and_nothing_else(rgb, labels):
    painted = drawn(plots.plot_overlay(rgb, labels, GLOMERULI)).astype(int)
    np.testing.assert_array_equal(painted[labels == 0], rgb[labels == 0])
    distance = np.abs(painted - VERMILION).sum(axis=2)[labels == 1].mean()
    assert distance < 0.7 * np.abs(rgb.astype(int) - VERMILION).sum(axis=2)[labels == 1].mean()


def test_an_outline_colours_the_rim_and_leaves_the_core(rgb, labels):
    painted = drawn(plots.plot_overlay(rgb, labels, GLOMERULI, outline=True))
    assert (painted[20, 30:60] == VERMILION).all()
    assert (painted[20:40, 59] == VERMILION).all()
    np.testing.assert_array_equal(painted[24:36, 34:56], rgb[24:36, 34:56])
    np.testing.assert_array_equal(painted[labels == 0], rgb[labels == 0])


def test_neighbouring_classes_each_get_their_outline(rgb, labels):
    labels[20:40, 60:90] = 4
    painted = drawn(plots.plot_overlay(rgb, labels, KIDNEY_TISSUES, outline=True))
    assert (painted[30, 59] == SKY).all()
    assert (painted[30, 60] == VERMILION).all()


def test_the_legend_holds_the_classes_that_occur(rgb, labels):
    assert legend(plots.plot_overlay(rgb, labels, GLOMERULI)) == ["Glomerulus"]
    labels[:5] = IGNORE_ID
    labels[50:] = 3
    ax = plots.plot_overlay(rgb, labels, KIDNEY_TISSUES)
    assert legend(ax) == ["Normal tubule", "Vessel", "Unlabelled"]
    nothing = plots.plot_overlay(rgb, np.zeros_like(labels), GLOMERULI)
    assert nothing.get_legend() is None


def test_legend_and_scale_bar_can_be_left_out(rgb, labels):
    both = plots.plot_overlay(rgb, labels, GLOMERULI, mpp=0.5)
    bare = plots.plot_overlay(rgb, labels, GLOMERULI, mpp=0.5, legend=False, scale_bar=False)
    assert legend(both) == ["Glomerulus"] and len(both.texts) == len(both.lines) == 1
    assert bare.get_legend() is None and not bare.texts and not bare.lines
    np.testing.assert_array_equal(drawn(bare), drawn(both))
    assert bare.images[0].get_extent() == both.images[0].get_extent()


def test_unlabelled_pixels_are_whitened(rgb, labels):
    labels[:5] = IGNORE_ID
    for outline in (False, True):
        painted = drawn(plots.plot_overlay(rgb, labels, GLOMERULI, outline=outline))
        assert painted[:5].mean() > rgb[:5].mean() + 50


def test_labels_that_do_not_fit_are_refused(rgb, labels):
    with pytest.raises(ValueError, match=r"\(60, 100\).*\(30, 100\)"):
        plots.plot_overlay(rgb, labels[:30], GLOMERULI)
    labels[0, 0] = 9
    with pytest.raises(ValueError, match=r"ids \[9\]"):
        plots.plot_overlay(rgb, labels, GLOMERULI)


def test_probabilities_are_drawn_from_0_to_1_whatever_they_hold():
    ax = plots.plot_probability(np.full((20, 30), 0.4, np.float32))
    assert ax.images[0].get_clim() == (0, 1)
    assert ax.images[0].get_cmap().name == "viridis"


def test_a_grid_has_an_axes_for_each_image_and_one_scale_bar(rgb):
    axes = plots.plot_grid([rgb] * 5, list("abcde"), columns=3, mpp=0.5)
    assert [ax.get_title("left") for ax in axes] == list("abcde")
    assert len(axes[0].figure.axes) == 5
    assert [len(ax.texts) for ax in axes] == [1, 0, 0, 0, 0]
    headed = plots.plot_grid([rgb] * 2, mpp=0.5, heading="Noise")[0].figure
    assert alternative_text(headed).startswith("Noise")
    with pytest.raises(ValueError, match="2 titles for 1 images"):
        plots.plot_grid([rgb], ["a", "b"])
    with pytest.raises(ValueError, match="no image"):
        plots.plot_grid([])


def test_training_curves_bridge_epochs_without_validation(history):
    ax = plots.plot_training(history, best_epoch=5)
    assert legend(ax) == ["Train loss", "Validation loss"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [5, 4, 3, 2, 1])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [1, 3, 5])
    assert list(ax.lines[2].get_xdata()) == [5, 5]
    with pytest.raises(ValueError, match="val_dice"):
        plots.plot_training(history, ["val_dice"])


def test_lines_are_drawn_over_the_index_and_named_by_their_columns():
    table = pd.DataFrame({"kept": [1.0, 0.5, 0.2], "positive": [1, 1, 0.9]}, index=[0, 0.1, 0.2])
    ax = plots.plot_lines(table, xlabel="Threshold", percent=True)
    assert legend(ax) == ["kept", "positive"]
    assert ax.lines[0].get_xdata().tolist() == [0, 0.1, 0.2]
    assert ax.lines[0].get_ydata().tolist() == [1, 0.5, 0.2]
    assert ax.yaxis.get_major_formatter()(0.5) == "50%"
    with pytest.raises(ValueError, match="no lines to draw"):
        plots.plot_lines(table[:0], xlabel="Threshold")


def patch_places(splits):
    count = len(splits)
    return pd.DataFrame(
        {
            "x_l0": np.arange(count) * 200,
            "y_l0": np.zeros(count, int),
            "patch_px": 100,
            "downsample": 2.0,
            "split": splits,
        }
    )


def test_patches_stand_where_they_lie_in_the_colour_of_their_split():
    ax = plots.plot_patch_places(patch_places(["test", "", "train", "train"]))
    assert legend(ax) == ["train", "test", "none"]
    train, test, _ = [c for c in ax.collections if len(c.get_paths()) and c.get_offsets().any()]
    assert train.get_offsets().tolist() == [[500, 100], [700, 100]]
    assert test.get_offsets().tolist() == [[100, 100]]
    assert ax.get_xlim() == (0, 800) and ax.get_ylim() == (200, 0)


def test_places_of_too_many_kinds_or_of_none_are_refused():
    with pytest.raises(ValueError, match="told apart"):
        plots.plot_patch_places(patch_places(list("abcdefgh")))
    with pytest.raises(ValueError, match="no places"):
        plots.plot_patch_places(patch_places([]))


def test_class_shares_are_stacked_in_the_colours_of_their_classes():
    index = pd.Index(["A", "B"], name="Donor")
    shares = pd.DataFrame({"background": [0.7, 0.4], "glomerulus": [0.3, 0.6]}, index=index)
    ax = plots.plot_class_shares(shares, GLOMERULI)
    second = ax.containers[1].patches
    assert [p.get_x() for p in second] == [0.7, 0.4]
    np.testing.assert_allclose([p.get_width() for p in second], [0.3, 0.6])
    assert second[0].get_facecolor()[:3] == to_rgb(np.array(VERMILION) / 255)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["A", "B"]
    with pytest.raises(ValueError, match="within 0 to 1"):
        plots.plot_class_shares(shares * 100, GLOMERULI)
    with pytest.raises(ValueError, match="no class 'nerve'"):
        plots.plot_class_shares(shares.rename(columns={"glomerulus": "nerve"}), GLOMERULI)


def test_a_confusion_matrix_shows_shares_of_the_true_class():
    ax = plots.plot_confusion(np.array([[90, 10], [0, 0]]), GLOMERULI)
    assert texts(ax) == ["90", "10", "0", "0"]
    with pytest.raises(ValueError, match="3 classes, but the label set has 2"):
        plots.plot_confusion(np.eye(3, dtype=int), GLOMERULI)


def test_sizes_are_counted_once_in_their_group():
    table = pd.DataFrame({"diameter_um": np.arange(40.0), "group": ["a", "b"] * 20})
    ax = plots.plot_size_distribution(table, "diameter_um", group="group")
    assert ax.get_xlabel() == "Diameter (µm)"
    assert legend(ax) == ["a", "b"]
    assert len(ax.lines) == 2
    with pytest.raises(ValueError, match="no object"):
        plots.plot_size_distribution(table[:0], "diameter_um")
    with pytest.raises(ValueError, match="no column"):
        plots.plot_size_distribution(table, "area")


def test_figures_of_noise_stay_small_and_keep_the_colours_of_the_legend(labels):
    coarse = np.random.default_rng(0).integers(60, 200, (75, 100, 3), np.uint8)
    rgb = coarse.repeat(8, axis=0).repeat(8, axis=1)
    ax = plots.plot_overlay(rgb, np.ones(rgb.shape[:2], np.uint8), GLOMERULI, title="Noise")
    png = figure_png(ax.figure)
    assert len(png) < 120_000
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "P"
        colours = {c for _, c in image.convert("RGB").getcolors()}
    assert VERMILION in colours
    assert (255, 255, 255) in colours


def test_a_smaller_palette_makes_a_smaller_figure_and_keeps_the_fixed_colours(labels):
    rgb = np.random.default_rng(0).integers(60, 200, (200, 200, 3), np.uint8)
    ax = plots.plot_overlay(rgb, np.zeros((200, 200), np.uint8), GLOMERULI, title="Noise")
    few, many = (figure_png(ax.figure, palette=n) for n in (40, 256))
    assert len(few) < 0.8 * len(many)
    with Image.open(io.BytesIO(few)) as image:
        colours = {c for _, c in image.convert("RGB").getcolors()}
    assert len(colours) <= 40
    assert {(0, 0, 0), (255, 255, 255)} <= colours
    with pytest.raises(ValueError, match="32 to 256"):
        figure_png(ax.figure, palette=8)


def test_few_colours_keep_what_is_rare_on_a_slide_that_is_mostly_pale():
    rng = np.random.default_rng(0)
    shown = rng.integers(236, 252, (200, 200, 3), np.uint8)  # glass, thousands of shades
    stain = np.exp(-rng.uniform(0.1, 1.0, (60, 200, 1)) * [0.3, 0.9, 0.4])
    shown[:60] = (240 * stain).astype(np.uint8)
    inks = {"green": (2, 110, 15), "red": (190, 30, 40), "purple": (70, 55, 85)}
    for row, ink in enumerate(inks.values()):
        shown[80 + 40 * row : 92 + 40 * row] = ink
    ax = plots.show_image(shown)
    with Image.open(io.BytesIO(figure_png(ax.figure, palette=48))) as image:
        kept = np.array([colour for _, colour in image.convert("RGB").getcolors()])
    assert len(kept) <= 48
    for name, ink in inks.items():
        assert np.abs(kept - ink).max(axis=1).min() <= 10, name


def test_the_alternative_text_is_made_of_titles_and_labels(history):
    ax = plots.plot_training(history, title="The loss falls")
    assert alternative_text(ax.figure) == "The loss falls (x: Epoch)"
    assert alternative_text(plt.figure()) == "Figure without a title"


@pytest.mark.slow
def test_a_notebook_stores_palette_figures_with_alternative_text(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    source = """
import numpy as np, matplotlib.pyplot as plt
from renal_utils.plots import show_image, use_course_style
use_course_style()
show_image(np.zeros((40, 60, 3), np.uint8), title="Night")
plt.show()
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    output = next(o for o in notebook.cells[0].outputs if "image/png" in o.get("data", {}))
    assert output.metadata["image/png"]["alt"] == "Night"
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as image:
        assert image.mode == "P"
