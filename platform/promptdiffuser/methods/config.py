"""Settings of the adaptation methods: an experiment has a section for every class that a method declares."""

from dataclasses import field, make_dataclass
from typing import Any

from promptdiffuser.errors import UserError
from promptdiffuser.methods.adaptation import METHODS, Method


def compose_adaptation_config(module: str) -> Any:
    """Return the class of `Experiment.adaptation`, with a field for each section of the methods, in their order.

    Methods that are registered afterwards would have no settings there, so they are refused.

    Args:
        module: Module in which the class will stand under the name `AdaptationConfig`, for pickling.

    Raises:
        UserError: Two methods name one section for different settings.
    """
    sections = dict[str, type[Any]]()
    for method in METHODS.values():
        settings = method.settings
        if settings is not None and sections.setdefault(method.section, settings) is not settings:
            raise UserError(
                f"method {method.name} has its settings in adaptation.{method.section}, which holds those of another "
                "method; give it another section"
            )
    METHODS.seal(
        "promptdiffuser.experiment has been imported, which composes the settings of all methods; name the module by "
        "--plugin or PROMPTDIFFUSER_PLUGINS, or import it before"
    )
    fields = [(section, settings, field(default_factory=settings)) for section, settings in sections.items()]
    made = make_dataclass("AdaptationConfig", fields, frozen=True)
    made.__module__, made.__doc__ = module, "Settings of the adaptation methods; none is chosen on test tasks."
    return made


def settings_of(adaptation: Any, method: Method) -> Any:
    """Return a method's own settings out of an experiment's `adaptation`; None if it has none."""
    return None if method.settings is None else getattr(adaptation, method.section)
