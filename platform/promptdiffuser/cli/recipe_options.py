"""Options of the commands whose first argument is a recipe. Only the recipe that is named is made."""

import inspect
import json
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.pipeline.options import BenchmarkOptions, JobOptions, SweepOptions
from promptdiffuser.plugins import HELP as PLUGIN_HELP
from promptdiffuser.recipes import BENCHMARKS, RECIPES, SWEEPS
from promptdiffuser.recipes.benchmarks import Benchmark
from promptdiffuser.registry import suggest
from promptdiffuser.sweeps.sweep import Sweep

HELP = ("-h", "--help")
Options = TypeVar("Options")
Recipe = TypeVar("Recipe")


def of_recipe(
    recipes: Mapping[str, Callable[[], Recipe]],
    kind: type[Any] | tuple[type[Any], ...],
    options_of: Callable[[Recipe], Options],
    arguments: Sequence[str],
    program: str,
    summary: str,
) -> Options:
    """Parse `RECIPE [options]`; raises `UserError`, with the nearest name, for a recipe that does not exist.

    Args:
        recipes: The named ones; FILE.py or FILE.py:FUNCTION is one of the user's.
        kind: What a recipe of the user's must return.
        options_of: Makes the command's options, whose defaults are the recipe's.
        arguments: The command line after the command.
        program: The command, for its help.
        summary: What it does, in a sentence.
    """
    if not arguments or arguments[0] in HELP:
        width = max(map(len, recipes))
        lines = [f"  {name:<{width}}  {_first_line(make)}" for name, make in recipes.items()]
        print("\n".join([f"usage: {program} RECIPE [options]", "", summary, "", "recipes:", *lines, ""]))
        print("FILE.py or FILE.py:FUNCTION is a recipe of your own. RECIPE --help lists the options.")
        print(PLUGIN_HELP)
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    if name.partition(":")[0].endswith(".py"):
        make: Callable[[], Recipe] = own_recipe(name)
    elif name in recipes:
        make = recipes[name]
    else:
        raise UserError(f"unknown recipe {name!r}; {suggest(name, recipes)}")
    recipe = make()
    if not isinstance(recipe, kind):
        raise UserError(f"{name} returns {type(recipe).__name__}, which {program} cannot take")
    description = f"{summary}\n\n{name}: {_first_line(make)}\n\n{PLUGIN_HELP}"
    return with_options(options_of(recipe), rest, f"{program} {name}", description)


def with_options(defaults: Options, arguments: Sequence[str], program: str, description: str) -> Options:
    """Return options with the changes that a command line names."""
    # Without subcommands for the fields of an experiment that may have one of several types.
    config = (tyro.conf.AvoidSubcommands,)
    return tyro.cli(
        type(defaults), default=defaults, args=arguments, prog=program, description=description, config=config
    )


def own_recipe(name: str) -> Callable[[], Any]:
    """Return the function that FILE.py:FUNCTION names, or the only public one that FILE.py defines.

    Raises:
        UserError: There is no such file or function, or the file defines several.
    """
    path, _, function = name.partition(":")
    if not Path(path).is_file():
        raise UserError(f"{path} is not there; name a recipe or a Python file that defines one")
    defined = {
        key: value
        for key, value in runpy.run_path(path, run_name="recipe").items()
        if inspect.isfunction(value) and value.__module__ == "recipe" and not key.startswith("_")
    }
    if function in defined:
        return defined[function]
    if not function and len(defined) == 1:
        return next(iter(defined.values()))
    raise UserError(f"name a function of {path} as {path}:FUNCTION; it defines {', '.join(defined) or 'none'}")


def experiment(arguments: Sequence[str], program: str, summary: str) -> JobOptions:
    """Return the options of a command on an experiment."""
    return of_recipe(RECIPES, Experiment, JobOptions, arguments, program, summary)


def sweep(arguments: Sequence[str], program: str, summary: str) -> SweepOptions:
    """Return the options of a sweep."""
    return of_recipe(SWEEPS, Sweep, SweepOptions, arguments, program, summary)


def benchmark(arguments: Sequence[str], program: str, summary: str) -> BenchmarkOptions:
    """Return the options of a benchmark."""
    return of_recipe(BENCHMARKS, Benchmark, BenchmarkOptions, arguments, program, summary)


def any_recipe(arguments: Sequence[str], program: str, summary: str) -> JobOptions | SweepOptions | BenchmarkOptions:
    """Return the options of the command that makes a recipe: an experiment, a sweep or a benchmark."""
    recipes: dict[str, Callable[[], Experiment | Sweep | Benchmark]] = {**RECIPES, **SWEEPS, **BENCHMARKS}

    def options_of(recipe: Experiment | Sweep | Benchmark) -> JobOptions | SweepOptions | BenchmarkOptions:
        if isinstance(recipe, Experiment):
            return JobOptions(recipe)
        return SweepOptions(recipe) if isinstance(recipe, Sweep) else BenchmarkOptions(recipe)

    return of_recipe(recipes, (Experiment, Sweep, Benchmark), options_of, arguments, program, summary)


def sampler_table(arguments: Sequence[str], program: str, summary: str) -> object:
    """Return the options of the sampler table."""
    from promptdiffuser.pipeline.sampler_table import SamplerTable, quickstart_of_fifty_levels

    def unchanged(table: SamplerTable) -> SamplerTable:
        return table

    recipes = {"quickstart": quickstart_of_fifty_levels}
    return of_recipe(recipes, SamplerTable, unchanged, arguments, program, summary)


@dataclass(frozen=True)
class Saved:
    """Where a saved experiment is."""

    from_run: str | None = None
    """Id of any experiment's run."""
    from_file: Path | None = None
    """File of an experiment."""


def experiment_or_saved(arguments: Sequence[str], program: str, summary: str) -> JobOptions:
    """Return the options of a recipe, or of a saved experiment where --from-run or --from-file names one."""
    if not any(argument.startswith("--from-") for argument in arguments):
        return experiment(arguments, program, f"{summary} --from-run RUN_ID or --from-file FILE runs a saved one.")
    saved, rest = tyro.cli(Saved, args=arguments, prog=program, return_unknown_args=True, add_help=False)
    if (saved.from_run is None) == (saved.from_file is None):
        raise UserError("name one saved experiment, by --from-run or --from-file")
    if saved.from_file is not None:
        text, name = _read(saved.from_file), f"--from-file {saved.from_file}"
    else:
        from promptdiffuser.tracking.store import read_json, resolve_uri

        text, name = json.dumps(read_json(resolve_uri(), str(saved.from_run), "experiment.json")), "--from-run RUN_ID"
    return with_options(JobOptions(Experiment.from_json(text)), rest, f"{program} {name}", summary)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name the JSON file of an experiment") from error


def _first_line(recipe: Callable[[], object]) -> str:
    return (recipe.__doc__ or "").strip().split("\n")[0]
