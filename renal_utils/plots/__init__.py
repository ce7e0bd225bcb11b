"""Plots: the only place that imports matplotlib and seaborn.

Every function takes data that are computed already and returns the axes it drew on; none shows,
saves or computes results. Modules: ``style`` (fonts, colours, small PNG), ``pictures`` (images,
overlays, scale bars), ``charts`` (curves, shares, sizes), ``study_charts`` (heat maps, flip-flop).
"""

from renal_utils.plots.charts import (
    plot_class_shares,
    plot_confusion,
    plot_lines,
    plot_patch_places,
    plot_size_distribution,
    plot_training,
)
from renal_utils.plots.estimates import plot_estimates
from renal_utils.plots.pictures import (
    add_scale_bar,
    open_axes,
    plot_grid,
    plot_overlay,
    plot_probability,
    show_image,
)
from renal_utils.plots.study_charts import best_cell, plot_flip_flop, plot_heat_map
from renal_utils.plots.style import SERIES_COLOURS, course_style, take_picture, use_course_style

__all__ = [
    "SERIES_COLOURS",
    "add_scale_bar",
    "best_cell",
    "course_style",
    "open_axes",
    "plot_class_shares",
    "plot_confusion",
    "plot_estimates",
    "plot_flip_flop",
    "plot_grid",
    "plot_heat_map",
    "plot_lines",
    "plot_overlay",
    "plot_patch_places",
    "plot_probability",
    "plot_size_distribution",
    "plot_training",
    "show_image",
    "take_picture",
    "use_course_style",
]
