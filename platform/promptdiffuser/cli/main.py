"""The command `promptdiffuser`: finds the named command, parses its options, then imports what does its work.

Every script in jobs/ calls `main` with the name of its command.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import tyro

from promptdiffuser.cli.running import exit_status
from promptdiffuser.errors import UserError
from promptdiffuser.plugins import HELP as PLUGIN_HELP
from promptdiffuser.plugins import take_plugins

HELP = ("-h", "--help")


@dataclass(frozen=True)
class Command:
    """One command; what it names is imported when it is called."""

    summary: str
    options: str
    """MODULE:NAME of a dataclass that tyro fills, or of a function (arguments, program, summary) -> options."""
    work: str
    """MODULE:NAME of a function of the options."""


OPTIONS = "promptdiffuser.cli.recipe_options"
STAGE = "promptdiffuser.pipeline.single_stage"
COMMANDS = {
    "run": Command(
        "Run an experiment from its first stage to its report.",
        f"{OPTIONS}:experiment_or_saved",
        "promptdiffuser.pipeline.run:run_experiment",
    ),
    "plan": Command(
        "Show the stages of an experiment, sweep or benchmark: keys, inputs, state, earlier seconds; runs nothing.",
        f"{OPTIONS}:any_recipe",
        "promptdiffuser.pipeline.overview:plan",
    ),
    "status": Command(
        "Show what is done of an experiment, sweep or benchmark, and how far the rest is.",
        f"{OPTIONS}:any_recipe",
        "promptdiffuser.pipeline.overview:status",
    ),
    "sweep": Command(
        "Search around an experiment with Ray Tune, scored on validation tasks.",
        f"{OPTIONS}:sweep",
        "promptdiffuser.pipeline.sweep:main",
    ),
    "benchmark": Command(
        "Compare methods over families, seeds and sizes of the few-shot set.",
        f"{OPTIONS}:benchmark",
        "promptdiffuser.pipeline.benchmark:main",
    ),
    "sampler-table": Command(
        "Compare samplers on the same diffusers by the downstream loss behind their prompts.",
        f"{OPTIONS}:sampler_table",
        "promptdiffuser.pipeline.sampler_table:main",
    ),
    "stage collect": Command(
        "Collect the offline dataset: rollout actors run the family's experts on every task.",
        f"{OPTIONS}:experiment",
        f"{STAGE}:collect",
    ),
    "stage pretrain": Command(
        "Pre-train the backbones on the training tasks.", f"{OPTIONS}:experiment", f"{STAGE}:pretrain"
    ),
    "stage train-diffuser": Command(
        "Train the diffusers on the training tasks.", f"{OPTIONS}:experiment", f"{STAGE}:train_diffuser"
    ),
    "stage adapt": Command(
        "Adapt the frozen backbone to every test task by every method.", f"{OPTIONS}:experiment", f"{STAGE}:adapt"
    ),
    "stage evaluate": Command("Evaluate every method on the test tasks.", f"{OPTIONS}:experiment", f"{STAGE}:evaluate"),
    "data describe": Command(
        "Check a dataset and show its tasks, episodes and returns.",
        "promptdiffuser.cli.describe:Describe",
        "promptdiffuser.cli.describe:main",
    ),
    "data render": Command(
        "Film one episode of a demonstrator as MP4 or GIF.",
        "promptdiffuser.cli.render:Render",
        "promptdiffuser.cli.render:main",
    ),
    "data import-pickles": Command(
        "Import the pickles that Prompt-DT and its followers publish.",
        "promptdiffuser.cli.import_pickles:ImportPickles",
        "promptdiffuser.cli.import_pickles:main",
    ),
    "data exchange": Command(
        "Import MACAW's buffers; import and export Minari datasets.",
        "promptdiffuser.cli.exchange:Exchange",
        "promptdiffuser.cli.exchange:main",
    ),
    "experts": Command(
        "Train the experts of task families and measure the reference returns of every task.",
        "promptdiffuser.pipeline.experts:ExpertsJob",
        "promptdiffuser.pipeline.experts:main",
    ),
    "report": Command(
        "Write the report of an experiment.",
        "promptdiffuser.reporting.report:Arguments",
        "promptdiffuser.reporting.report:run",
    ),
    "compare": Command(
        "Compare runs of MLflow.",
        "promptdiffuser.cli.compare:Arguments",
        "promptdiffuser.cli.compare:run",
    ),
    "sweep-report": Command(
        "Write the report of a sweep.",
        "promptdiffuser.reporting.sweep_report:Arguments",
        "promptdiffuser.reporting.sweep_report:run",
    ),
    "list": Command(
        "Show the stages below a folder of outputs: state, size, seconds, commit.",
        "promptdiffuser.pipeline.housekeeping:List",
        "promptdiffuser.pipeline.housekeeping:show",
    ),
    "prune": Command(
        "Delete what was interrupted, is of an older version or, with --unused, what no result was made from.",
        "promptdiffuser.pipeline.housekeeping:Prune",
        "promptdiffuser.pipeline.housekeeping:prune",
    ),
    "ui": Command(
        "Open MLflow's pages on the store that runs are logged to.",
        "promptdiffuser.cli.ui:Ui",
        "promptdiffuser.cli.ui:main",
    ),
    "sync": Command(
        "Deliver to MLflow what experiments logged while it was away.",
        "promptdiffuser.cli.sync:Sync",
        "promptdiffuser.cli.sync:main",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name, by default those of the process, and end it with its exit status.

    Exit status: 0 when the command did its work, 2 with a one-line message for what the user can repair, 130 after
    Ctrl-C, 143 after SIGTERM.
    """
    with exit_status():
        words = take_plugins(sys.argv[1:] if arguments is None else arguments)
        if not words or words[0] in HELP:
            print(overview())
            sys.exit(0 if words else 2)
        name, rest = find(words)
        command = COMMANDS[name]
        options = parse(command, f"promptdiffuser {name}", rest)
        _imported(command.work)(options)


def overview() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    ending = ["", "COMMAND --help lists its options.", PLUGIN_HELP]
    return "\n".join(["usage: promptdiffuser COMMAND [arguments]", "", *lines, *ending])


def find(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of a command and what follows it; raises `UserError`, with the nearest name, if none is known."""
    for length in (1, 2):
        if (name := " ".join(words[:length])) in COMMANDS:
            return name, list(words[length:])
    if group := [name for name in COMMANDS if name.startswith(f"{words[0]} ")]:
        raise UserError(f"`{words[0]}` needs one of {', '.join(name.split()[1] for name in group)}")
    near = get_close_matches(words[0], [name.split()[0] for name in COMMANDS], n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown command {words[0]!r}; {meant}`promptdiffuser --help` lists all")


def parse(command: Command, program: str, arguments: Sequence[str]) -> Any:
    """Return the options of a command; raises `UserError` where they contradict each other."""
    target = _imported(command.options)
    try:
        if inspect.isfunction(target):
            return target(arguments, program, command.summary)
        description = sys.modules[command.options.split(":")[0]].__doc__
        return tyro.cli(target, args=arguments, prog=program, description=description)
    except ValueError as error:  # fields that contradict each other are found when the whole object is made
        raise UserError(str(error)) from error


def _imported(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)
