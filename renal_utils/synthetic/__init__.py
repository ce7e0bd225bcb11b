"""Drawn kidneys: PAS-like slides with exact truth, from a small recipe and a seed.

A slide is planned first, as vectors (`plan_slide`): tissue edge, glomeruli with their loops,
vessels, tubules packed edge to edge, nuclei. `draw_region` then paints any part of it with its
truth. The painting works in fixed blocks of the slide, so that what it shows never depends on
the region asked for. Stains mix as optical densities (Beer-Lambert).

Order inside the package: recipe, canvas, packing, crescent -> noise -> terrain, tuft -> anatomy ->
tubules -> nuclei, artefacts -> plan -> materials, painting, colouring -> raster.
"""

from renal_utils.synthetic.materials import STRUCTURES
from renal_utils.synthetic.plan import SlidePlan, plan_slide
from renal_utils.synthetic.raster import DrawnRegion, draw_region
from renal_utils.synthetic.recipe import GROUPS, Recipe, donor_recipe, random_recipe

__all__ = [
    "GROUPS",
    "STRUCTURES",
    "DrawnRegion",
    "Recipe",
    "SlidePlan",
    "donor_recipe",
    "draw_region",
    "plan_slide",
    "random_recipe",
]
