"""Task families: one file each, which registers them in `FAMILIES`, and their environments with Gymnasium.

Without an import, `gymnasium.make("promptdiffuser.tasks:PromptDiffuser/CheetahVel-v0", task=7)` works too.
"""

from promptdiffuser.registry import import_modules
from promptdiffuser.tasks import families
from promptdiffuser.tasks.family import FAMILIES

__all__ = ["FAMILIES", "get_family"]

get_family = FAMILIES.find

import_modules(families.__name__, families.__path__)
