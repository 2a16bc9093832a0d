"""What a command would do, and what is done of it: nothing is written, and neither Ray nor MLflow is asked."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from promptdiffuser.console import open_console, print_table
from promptdiffuser.pipeline.graph import Graph, Stage
from promptdiffuser.pipeline.options import BenchmarkOptions, JobOptions, SweepOptions
from promptdiffuser.pipeline.store import StageStore, State, read_record

Options = JobOptions | SweepOptions | BenchmarkOptions


def plan(options: Options) -> None:
    """Print the graph of a command: every stage with its key, inputs, state, earlier seconds, and what it takes."""
    for store, graph in graphs_of(options):
        table = Table(title=f"{store.folder}", title_justify="left")
        for column in ("stage", "key", "reads", "state", "seconds", "takes"):
            table.add_column(column, justify="right" if column == "seconds" else "left", no_wrap=column != "reads")
        for stage in graph:
            state = store.state(stage)
            counts = Counter(node.name for node in stage.inputs.values())
            reads = ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items())
            table.add_row(stage.name, stage.key[:8], reads, state.name, _seconds(store, stage, state), stage.takes)
        console = open_console()
        print_table(console, table)
        console.print("seconds in parentheses: of an earlier stage of the same name, with other settings or inputs")


def status(options: Options) -> None:
    """Print what is done of a command, and how far what was interrupted is."""
    for store, graph in graphs_of(options):
        table = Table(title=f"{store.folder}", title_justify="left")
        for column in ("stage", "state", "so far"):
            table.add_column(column, no_wrap=True)
        states = {stage: store.state(stage) for stage in graph}
        for stage, state in states.items():
            table.add_row(stage.name, state.name, state.why or _so_far(store, stage, state))
        console = open_console()
        print_table(console, table)
        console.print(f"{sum(state.is_done for state in states.values())} of {len(states)} stages are done")


def graphs_of(options: Options) -> Iterable[tuple[StageStore, Graph]]:
    """Yield the folder and the graph of an experiment, of the base of a sweep, or of a benchmark on each family."""
    if isinstance(options, JobOptions):
        from promptdiffuser.pipeline.experiment_graph import graph_of

        yield _store(options.outputs, options.experiment.name), graph_of(options).graph
    elif isinstance(options, SweepOptions):
        from promptdiffuser.pipeline.sweep import base_graph

        yield _store(options.outputs, options.sweep.experiment.name), base_graph(options)
    else:
        from promptdiffuser.pipeline.benchmark import graph_of as benchmark_graph

        for family in options.benchmark.families:
            base, benchmark = benchmark_graph(options, family)
            yield _store(options.outputs, base.experiment.name), benchmark.graph


def _store(outputs: Path, name: str) -> StageStore:
    return StageStore(outputs.resolve() / name)


def _seconds(store: StageStore, stage: Stage, state: State) -> str:
    """Return the seconds that a stage took; in parentheses those of the newest other stage of its name."""
    if state.record is not None:
        return f"{state.record.seconds:.0f}"
    others = sorted(store.folder.glob(f"{stage.name}-????????/stage.json"), key=lambda path: path.stat().st_mtime)
    earlier = [record for path in others if (record := read_record(path.parent)) is not None]
    return f"({earlier[-1].seconds:.0f})" if earlier else ""


def _so_far(store: StageStore, stage: Stage, state: State) -> str:
    if state.record is not None:
        return f"took {state.record.seconds:.0f} s"
    if stage.progress is None or not (state.is_begun or state.is_at_work):
        return ""
    return stage.progress(store.folder, store.folder_of(stage))
