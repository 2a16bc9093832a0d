"""Named, complete experiments and sweeps: functions that return one, a line each in `RECIPES` or `SWEEPS`."""

from collections.abc import Callable

from promptdiffuser.experiment import Experiment
from recipes.cheetah_vel import cheetah_vel
from recipes.guidance_sweep import GuidanceSweep, quickstart_guidance
from recipes.quickstart import quickstart

RECIPES: dict[str, Callable[[], Experiment]] = {"quickstart": quickstart, "cheetah-vel": cheetah_vel}
SWEEPS: dict[str, Callable[[], GuidanceSweep]] = {"quickstart-guidance": quickstart_guidance}
