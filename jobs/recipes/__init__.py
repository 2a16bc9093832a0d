"""Named, complete experiments and sweeps: functions that return one, a line each in `RECIPES` or `SWEEPS`."""

from collections.abc import Callable

from promptdiffuser.experiment import Experiment
from promptdiffuser.tasks import FAMILIES
from recipes.guidance_sweep import GuidanceSweep, quickstart_guidance
from recipes.published import LARGE, published_size
from recipes.quickstart import quickstart

RECIPES: dict[str, Callable[[], Experiment]] = {
    "quickstart": quickstart,
    **{family: published_size(family) for family in FAMILIES},
    **{f"{family}-large": published_size(family, LARGE) for family in FAMILIES},
}
SWEEPS: dict[str, Callable[[], GuidanceSweep]] = {"quickstart-guidance": quickstart_guidance}
