"""The user's own methods, task families, schedules, ...: modules outside the package that register them.

A plugin is named by `--plugin MODULE` on a command line, where MODULE may be the path of a .py file, by the variable
PROMPTDIFFUSER_PLUGINS, or by an entry point of an installed package in the group `promptdiffuser.plugins`. It is
imported at the first lookup in a registry, in every process: those that Ray starts inherit the variable. On a cluster
of several machines each must be able to import the module, or see the file under the same path.

A plugin imports what it builds on, such as `promptdiffuser.methods.adaptation` or `promptdiffuser.tasks.family`. It
must not import `promptdiffuser.experiment` or anything above it, as an experiment is composed of what plugins register.
"""

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from promptdiffuser.errors import UserError

VARIABLE = "PROMPTDIFFUSER_PLUGINS"
"""Names the plugins of a process and of those that it starts, separated as in PATH."""
GROUP = "promptdiffuser.plugins"
OPTION = "--plugin"
HELP = f"{OPTION} MODULE imports methods, task families, ... of your own, from a module or a .py file; repeatable."
SUFFIX = ".py"


def take_plugins(words: Sequence[str]) -> list[str]:
    """Return a command line without its `--plugin MODULE` options, and put their modules into the variable.

    Raises:
        UserError: The option comes last, without a module.
    """
    named, rest, following = _named(), list[str](), iter(words)
    for word in following:
        option, _, value = word.partition("=")
        if option != OPTION:
            rest.append(word)
        elif plugin := value or next(following, ""):
            named.append(str(Path(plugin).resolve()) if plugin.endswith(SUFFIX) else plugin)
        else:
            raise UserError(f"{OPTION} needs the name of a module or the path of a {SUFFIX} file")
    if named:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(named))
    return rest


@cache
def load_plugins() -> None:
    """Import the plugins; raises `UserError` for one that cannot be found."""
    for name in _named():
        if name.endswith(SUFFIX):
            _import_file(Path(name))
        else:
            _import_module(name)
    for entry_point in sorted(entry_points(group=GROUP)):
        entry_point.load()


def plugin_files() -> list[Path]:
    """Return the files of the plugins of this process; of a package, its __init__.py."""
    load_plugins()
    names = [_module_name(Path(name)) if name.endswith(SUFFIX) else name for name in _named()]
    names += [entry_point.module for entry_point in sorted(entry_points(group=GROUP))]
    return [Path(file) for name in names if (file := sys.modules[name].__file__) is not None]


def _module_name(path: Path) -> str:
    """Return a name that no other module has, by which objects of a file's classes are pickled."""
    return f"promptdiffuser_plugin_{path.stem}"


def _named() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def _import_module(name: str) -> None:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the plugin is there and lacks something itself
        raise UserError(
            f"plugin {name!r} cannot be found; install it, put its folder on PYTHONPATH, or name its {SUFFIX} file"
        ) from error


def _import_file(path: Path) -> None:
    name = _module_name(path)
    if name in sys.modules:
        if sys.modules[name].__file__ != str(path):
            raise UserError(f"plugins {sys.modules[name].__file__} and {path} have the same name; rename one")
        return
    if not path.is_file():
        raise UserError(f"plugin {path} is no file that this machine sees")
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
