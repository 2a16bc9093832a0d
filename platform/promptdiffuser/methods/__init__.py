"""Methods that adapt the frozen backbone to a task: one file each, which registers them in `METHODS`."""

from promptdiffuser.methods.adaptation import METHODS
from promptdiffuser.registry import import_modules

__all__ = ["METHODS", "get_method"]

get_method = METHODS.find

import_modules(__name__, __path__)
