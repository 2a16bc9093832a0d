"""Task families: one file each and one line in `FAMILIES`."""

from promptdiffuser.errors import UserError
from promptdiffuser.tasks import cheetah_vel
from promptdiffuser.tasks.family import TaskFamily

_MODULES = (cheetah_vel,)
FAMILIES: dict[str, TaskFamily] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


def register_environments() -> None:
    """Register every family's environment with Gymnasium; importing this module does it.

    Without an import, `gymnasium.make("promptdiffuser.tasks:PromptDiffuser/CheetahVel-v0", task=7)` does both.
    """
    for module in _MODULES:
        module.register()


def get_family(name: str) -> TaskFamily:
    """Return a task family by name, or raise a `UserError` that lists the known ones."""
    if name not in FAMILIES:
        raise UserError(f"unknown task family {name!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


register_environments()
