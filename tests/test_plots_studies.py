import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from renal_utils.plots import SERIES_COLOURS, best_cell, plot_flip_flop, plot_heat_map
from renal_utils.plots.style import alternative_text


@pytest.fixture(autouse=True)
def _figures():
    yield
    plt.close("all")


@pytest.fixture
def mean():
    rates = pd.Index([1e-4, 1e-3], name="learning_rate")
    sizes = pd.Index([8, 16, 32], name="batch_size")
    return pd.DataFrame([[0.5, 0.7, np.nan], [0.6, 0.2, 0.4]], index=rates, columns=sizes)


@pytest.fixture
def history():
    columns = {"val_dice": [0.2, 0.8, 0.3], "val_flips": [np.nan, 0.1, 0.4]}
    return pd.DataFrame(columns, index=pd.RangeIndex(1, 4, name="epoch"))


def framed(ax):
    frames = [p for p in ax.patches if isinstance(p, Rectangle) and not p.get_fill()]
    return [frame.get_xy() for frame in frames]


def test_cells_say_mean_and_spread_and_empty_ones_nothing(mean):
    ax = plot_heat_map(mean, spread=mean / 10, label="F1", title="Sixteen is best")
    texts = [t.get_text() for t in ax.texts]
    assert texts[:2] == ["0.500\n±0.050", "0.700\n±0.070"]
    assert len([t for t in texts if t]) == 5
    assert [t.get_text() for t in ax.get_xticklabels()] == ["8", "16", "32"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0.0001", "0.001"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Batch size", "Learning rate")
    assert "Sixteen is best" in alternative_text(ax.figure)


@pytest.mark.parametrize(("best", "cell"), [("high", (0, 1)), ("low", (1, 1))])
def test_the_best_cell_is_framed(mean, best, cell):
    assert best_cell(mean, best=best) == cell
    assert framed(plot_heat_map(mean, best=best)) == [cell[::-1]]


def test_brightness_alone_tells_the_cells_apart(mean):
    colours = plot_heat_map(mean).collections[0].get_cmap()(np.linspace(0, 1, 20))[:, :3]
    grey = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) > 0).all()
    assert SERIES_COLOURS[1] not in colours


def test_names_of_parameters_are_written_as_people_write_them(mean):
    mean = mean.rename_axis(index="bce_weight", columns="patch_px")
    ax = plot_heat_map(mean)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Patch (pixels)", "BCE weight")


def test_nothing_to_draw_is_refused(mean, history):
    with pytest.raises(ValueError, match="no number"):
        plot_heat_map(mean * np.nan)
    with pytest.raises(ValueError, match="spread has cells"):
        plot_heat_map(mean, spread=mean.iloc[:1])
    with pytest.raises(ValueError, match="'high' or 'low'"):
        plot_heat_map(mean, best="most")
    with pytest.raises(ValueError, match="no column"):
        plot_flip_flop(history, flips="flips")


def test_the_flip_flop_graph_has_the_score_before_the_share_that_flipped(history):
    ax = plot_flip_flop(history, title="It jumps", most_flips=0.5)
    (bars,) = [other for other in ax.figure.axes if other is not ax]
    assert ax.lines[0].get_ydata().tolist() == [0.2, 0.8, 0.3]
    heights = [bar.get_height() for bar in bars.patches]
    assert heights[1:] == [0.1, 0.4] and np.isnan(heights[0])
    assert bars.get_ylim() == (0, 0.5)
    assert ax.get_zorder() > bars.get_zorder()
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == ["Validation Dice", "labels that flipped"]
