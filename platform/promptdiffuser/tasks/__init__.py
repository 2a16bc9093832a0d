"""Task families: one file each and one line in `FAMILIES`."""

from promptdiffuser.errors import UserError
from promptdiffuser.tasks.families import (
    ant_dir,
    ant_dir_ood,
    cheetah_dir,
    cheetah_vel,
    hopper_params,
    ml10,
    ml45,
    pick_place,
    reach,
    walker_params,
)
from promptdiffuser.tasks.family import TaskFamily

FAMILIES: dict[str, TaskFamily] = {
    family.name: family
    for family in (
        cheetah_dir.FAMILY,
        cheetah_vel.FAMILY,
        ant_dir.FAMILY,
        ant_dir_ood.FAMILY,
        *pick_place.FAMILIES,
        *reach.FAMILIES,
        *ml10.FAMILIES,
        *ml45.FAMILIES,
        hopper_params.FAMILY,
        walker_params.FAMILY,
    )
}


def register_environments() -> None:
    """Register every family's environment with Gymnasium; importing this module does it.

    Without an import, `gymnasium.make("promptdiffuser.tasks:PromptDiffuser/CheetahVel-v0", task=7)` does both.
    """
    for family in FAMILIES.values():
        family.register()


def get_family(name: str) -> TaskFamily:
    """Return a task family by name, or raise a `UserError` that lists the known ones."""
    if name not in FAMILIES:
        raise UserError(f"unknown task family {name!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


register_environments()
