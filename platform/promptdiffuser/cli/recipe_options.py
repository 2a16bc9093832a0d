"""Options of the commands whose first argument is a recipe. Only the recipe that is named is made."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import tyro

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.pipeline.options import BenchmarkOptions, JobOptions, SweepOptions
from promptdiffuser.recipes import BENCHMARKS, RECIPES, SWEEPS
from promptdiffuser.recipes.benchmarks import Benchmark
from promptdiffuser.sweeps.sweep import Sweep

HELP = ("-h", "--help")
Options = TypeVar("Options")
Recipe = TypeVar("Recipe")


def of_recipe(
    recipes: Mapping[str, Callable[[], Recipe]],
    options_of: Callable[[Recipe], Options],
    arguments: Sequence[str],
    program: str,
    summary: str,
) -> Options:
    """Parse `RECIPE [options]`; raises `UserError`, with the nearest name, for a recipe that does not exist."""
    if not arguments or arguments[0] in HELP:
        width = max(map(len, recipes))
        lines = [f"  {name:<{width}}  {_first_line(make)}" for name, make in recipes.items()]
        print("\n".join([f"usage: {program} RECIPE [options]", "", summary, "", "recipes:", *lines, ""]))
        print("RECIPE --help lists the options.")
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    if name not in recipes:
        near = get_close_matches(name, recipes, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown recipe {name!r}; {meant}known: {', '.join(recipes)}")
    options = options_of(recipes[name]())
    # Without subcommands for the fields of an experiment that may have one of several types.
    config = (tyro.conf.AvoidSubcommands,)
    description = f"{summary}\n\n{name}: {_first_line(recipes[name])}"
    return tyro.cli(
        type(options), default=options, args=rest, prog=f"{program} {name}", description=description, config=config
    )


def experiment(arguments: Sequence[str], program: str, summary: str) -> JobOptions:
    """Return the options of a command on an experiment."""
    return of_recipe(RECIPES, JobOptions, arguments, program, summary)


def sweep(arguments: Sequence[str], program: str, summary: str) -> SweepOptions:
    """Return the options of a sweep."""
    return of_recipe(SWEEPS, SweepOptions, arguments, program, summary)


def benchmark(arguments: Sequence[str], program: str, summary: str) -> BenchmarkOptions:
    """Return the options of a benchmark."""
    return of_recipe(BENCHMARKS, BenchmarkOptions, arguments, program, summary)


def any_recipe(arguments: Sequence[str], program: str, summary: str) -> JobOptions | SweepOptions | BenchmarkOptions:
    """Return the options of the command that makes a recipe: an experiment, a sweep or a benchmark."""
    recipes: dict[str, Callable[[], Experiment | Sweep | Benchmark]] = {**RECIPES, **SWEEPS, **BENCHMARKS}

    def options_of(recipe: Experiment | Sweep | Benchmark) -> JobOptions | SweepOptions | BenchmarkOptions:
        if isinstance(recipe, Experiment):
            return JobOptions(recipe)
        return SweepOptions(recipe) if isinstance(recipe, Sweep) else BenchmarkOptions(recipe)

    return of_recipe(recipes, options_of, arguments, program, summary)


def sampler_table(arguments: Sequence[str], program: str, summary: str) -> object:
    """Return the options of the sampler table."""
    from promptdiffuser.pipeline.sampler_table import SamplerTable, quickstart_of_fifty_levels

    def unchanged(table: SamplerTable) -> SamplerTable:
        return table

    return of_recipe({"quickstart": quickstart_of_fifty_levels}, unchanged, arguments, program, summary)


@dataclass(frozen=True)
class Saved:
    """Command line of an experiment that was saved as JSON."""

    from_run: str | None = None
    """Id of any experiment's run."""
    from_file: Path | None = None
    """File of an experiment."""
    outputs: Path = Path("outputs")
    """Folder below which the experiment writes everything."""
    dataset: str | None = None
    """Dataset to use instead of the one that the experiment's own collect stage writes."""
    backbone_checkpoint: Path | None = None
    """Backbone folder to use instead of the one that its own pretrain stage writes."""
    rerun: tuple[str, ...] = ()
    """Stages to make again though they are done, by the names that are printed."""


def experiment_or_saved(arguments: Sequence[str], program: str, summary: str) -> JobOptions:
    """Return the options of a recipe, or of a saved experiment where --from-run or --from-file names one."""
    if not any(argument.startswith("--from-") for argument in arguments):
        return experiment(arguments, program, f"{summary} --from-run RUN_ID or --from-file FILE runs a saved one.")
    saved = tyro.cli(Saved, args=arguments, prog=program, description=summary)
    if (saved.from_run is None) == (saved.from_file is None):
        raise UserError("name one saved experiment, by --from-run or --from-file")
    if saved.from_file is not None:
        text = _read(saved.from_file)
    else:
        from promptdiffuser.tracking.store import read_json, resolve_uri

        text = json.dumps(read_json(resolve_uri(), str(saved.from_run), "experiment.json"))
    return JobOptions(Experiment.from_json(text), saved.outputs, saved.dataset, saved.backbone_checkpoint, saved.rerun)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name the JSON file of an experiment") from error


def _first_line(recipe: Callable[[], object]) -> str:
    return (recipe.__doc__ or "").strip().split("\n")[0]
