"""Named, complete experiments and sweeps: functions that return one, a line each in `RECIPES` or `SWEEPS`."""

from collections.abc import Callable

from promptdiffuser.experiment import Experiment
from promptdiffuser.recipes.benchmarks import Benchmark, all_methods, guidance_ablation
from promptdiffuser.recipes.published import LARGE, published_size
from promptdiffuser.recipes.quickstart import quickstart
from promptdiffuser.recipes.sweeps import (
    quickstart_backbone,
    quickstart_generation,
    quickstart_guidance,
    quickstart_population,
)
from promptdiffuser.sweeps.sweep import Sweep
from promptdiffuser.tasks import FAMILIES

RECIPES: dict[str, Callable[[], Experiment]] = {
    "quickstart": quickstart,
    **{family: published_size(family) for family in FAMILIES},
    **{f"{family}-large": published_size(family, LARGE) for family in FAMILIES},
}
SWEEPS: dict[str, Callable[[], Sweep]] = {
    "quickstart-guidance": quickstart_guidance,
    "quickstart-generation": quickstart_generation,
    "quickstart-population": quickstart_population,
    "quickstart-backbone": quickstart_backbone,
}
BENCHMARKS: dict[str, Callable[[], Benchmark]] = {
    "cheetah-vel-methods": all_methods,
    "guidance-ablation": guidance_ablation,
}
