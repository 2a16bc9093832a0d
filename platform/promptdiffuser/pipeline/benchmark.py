"""Compare methods on equal terms: methods x families x seeds x sizes of the few-shot set, in one table a family.

    promptdiffuser benchmark cheetah-vel-methods
    promptdiffuser benchmark cheetah-vel-methods --seeds 1 2 --few-shot-episodes 1 5 25

Dataset and backbones are made once. Diffusers of all seeds are trained side by side, a core each, then every method
adapts to every test task, then all are evaluated. What is finished is kept: run again after a kill, or with more
seeds or methods, the same command makes only what is missing.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from promptdiffuser.console import known, print_table, with_interval
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.training import train_many
from promptdiffuser.evaluation.scores import FLOORS, reference_scores
from promptdiffuser.evaluation.summary import read_summary
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods.cells import AdaptationCell
from promptdiffuser.pipeline.experiment_graph import Base, ExperimentGraph, base_of
from promptdiffuser.pipeline.graph import Given, Graph, Stage, check_names
from promptdiffuser.pipeline.options import BenchmarkOptions, JobOptions
from promptdiffuser.pipeline.session import ExperimentRun, Session, StageRun, status_of
from promptdiffuser.pipeline.stages.evaluate import EPISODES, SUMMARY
from promptdiffuser.pipeline.stages.pretrain import MODEL
from promptdiffuser.pipeline.stages.train_diffuser import DiffuserStage
from promptdiffuser.pipeline.work.adapt import cells_of, run_cells
from promptdiffuser.pipeline.work.evaluate import build, play
from promptdiffuser.pipeline.work.train_diffuser import job_of
from promptdiffuser.recipes.benchmarks import Benchmark, BenchmarkCell
from promptdiffuser.reporting.benchmark import write_tables
from promptdiffuser.reporting.benchmark_page import write_page
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.provenance import typed_command
from promptdiffuser.tracking.store import RunLog
from promptdiffuser.training.checkpoint import is_whole

COSTS = "costs.json"
CELLS_AT_A_TIME = 40
"""Cells whose policies are with the actors at a time."""
VERSION = 1


@dataclass(frozen=True)
class PlacedCell:
    """A cell with its stages."""

    cell: BenchmarkCell
    title: str
    """Name of its run."""
    stages: ExperimentGraph

    @property
    def experiment(self) -> Experiment:
        """The cell's experiment."""
        return self.cell.experiment


class BenchmarkGraph:
    """The stages of a benchmark on one family: those of its cells, and before each kind one that makes the work of all.

    Those leave nothing of their own; each cell's stage then finds its work done, and has its place in MLflow and on
    storage.
    """

    def __init__(self, options: JobOptions, benchmark: Benchmark, title: str) -> None:
        """Declare all stages."""
        self.benchmark, self.title, self.base = benchmark, title, base_of(options)
        self.cells = [
            PlacedCell(
                cell,
                " ".join(filter(None, [title, cell.arm, f"seed {cell.seed}", f"{cell.few_shot_episodes} episodes"])),
                ExperimentGraph(cell.experiment, self.base, is_cell=True),
            )
            for cell in benchmark.cells(options.experiment.family)
        ]
        self.runs: dict[str, ExperimentRun] = {}
        self.denoising = self._trainings("denoising", [each.stages.denoising for each in self.cells])
        self.diffusers = self._trainings("diffusers", [each.stages.diffusers for each in self.cells])
        self.adaptations, self.evaluations = self._adaptations(), self._evaluations()
        self.results = self._results()

    @property
    def graph(self) -> Graph:
        """All stages."""
        return Graph([stage for stage, _ in self.in_order()])

    def in_order(self) -> Iterator[tuple[Stage, str | None]]:
        """Yield the stages in the order in which they are made, each with the title of its cell if it has one."""
        yield from ((stage, None) for stage in self.base.stages)
        if self.base.optimised_prompts is not None:
            yield self.base.optimised_prompts, None
        for together, kind in ((self.denoising, "denoising"), (self.diffusers, "diffusers")):
            if together is not None:
                yield together, None
            own = ((one.stage, each.title) for each in self.cells for one in getattr(each.stages, kind).values())
            yield from {stage.key: (stage, title) for stage, title in own}.values()
        yield self.adaptations, None
        yield from ((each.stages.adapt, each.title) for each in self.cells)
        yield self.evaluations, None
        yield from ((each.stages.evaluate, each.title) for each in self.cells)
        yield self.results, None

    def open_runs(self, session: Session) -> None:
        """Give every cell its run below the benchmark's."""
        self.runs = {
            each.title: ExperimentRun(session.tracker, each.experiment, each.title, "experiment", {}, session.own)
            for each in self.cells
        }

    def _trainings(self, name: str, of_cells: Sequence[Mapping[str, DiffuserStage]]) -> Stage | None:
        """Return the stage that makes diffusers' trainings side by side; cells may share one."""
        trainings = {
            training.stage.key: (training, each.title)
            for each, of_cell in zip(self.cells, of_cells, strict=True)
            for training in of_cell.values()
        }
        if not trainings:
            return None

        def work(run: StageRun) -> None:
            train_side_by_side(run, [(each, self.runs[title]) for each, title in trainings.values()])

        inputs = {name: node for each, _ in trainings.values() for name, node in _named(each.stage.inputs)}
        return self._together(name, "train-diffuser", sorted(trainings), inputs, work)

    def _adaptations(self) -> Stage:
        """Return the stage that adapts by all methods of all cells side by side; cells may share an adaptation."""
        plans = {plan.part.key: (plan, each) for each in self.cells for plan in each.stages.plans}

        def work(run: StageRun) -> None:
            session, placed, total = run.session, list[tuple[AdaptationCell, RunLog]](), 0
            for plan, each in plans.values():
                cells = cells_of(session, plan)
                missing = [cell for cell in cells if not cell.is_done]
                total += len(cells)
                if missing:
                    parent = session.open(each.stages.adapt, self.runs[each.title])
                    placed += [(cell, parent) for cell in missing]
            run_cells(run, self.base.experiment.cluster, placed, total)

        inputs = {name: node for plan, _ in plans.values() for name, node in _named(plan.inputs)}
        return self._together("adaptations", "adapt", sorted(plans), inputs, work)

    def _evaluations(self) -> Stage:
        """Return the stage that plays the episodes of all cells, some cells together so that no actor waits."""

        def work(run: StageRun) -> None:
            for first in range(0, len(self.cells), CELLS_AT_A_TIME):
                some = self.cells[first : first + CELLS_AT_A_TIME]
                play(run, [build(run.session, each.experiment, each.stages.plans) for each in some])

        keys = [each.stages.evaluate.key for each in self.cells]
        inputs = {each.stages.adapt.key: each.stages.adapt for each in self.cells}
        return self._together("evaluations", "evaluate", keys, inputs, work)

    def _together(
        self,
        name: str,
        kind: str,
        keys: list[str],
        inputs: Mapping[str, Stage | Given],
        work: Callable[[StageRun], None],
    ) -> Stage:
        return Stage(name, kind, self._command, {"makes": keys}, work, VERSION, inputs, takes="all CPUs")

    def _results(self) -> Stage:
        """Return the stage that puts the evaluations of all cells together and writes the tables."""
        benchmark = self.benchmark

        def work(run: StageRun) -> None:
            frames, costs = list[pd.DataFrame](), list[dict[str, Any]]()
            for each in self.cells:
                folder = run.session.product(each.stages.evaluate)
                names = {"arm": each.cell.arm, "few_shot_episodes": each.cell.few_shot_episodes}
                frames.append(pd.read_parquet(folder / EPISODES).assign(**names, training_seed=each.cell.seed))
                methods = read_summary((folder / SUMMARY).read_text())["methods"]
                costs += [
                    names | {"method": method, "training_seed": each.cell.seed} | of for method, of in methods.items()
                ]
            pd.concat(frames, ignore_index=True).to_parquet(run.folder / EPISODES, index=False)
            (run.folder / COSTS).write_text(json.dumps(costs, indent=1) + "\n")
            for name in (EPISODES, COSTS):
                run.log.log_artifact(run.folder / name)
            tables = write_tables(run.folder, benchmark.reference, benchmark.reference_arm)
            family, facts = get_family(self.base.experiment.family), _facts(run.session, self.base, benchmark)
            page = write_page(run.folder, self.title, facts, benchmark.reference, family)
            for path in [*tables, page]:
                run.log.log_artifact(path)

        outputs = (EPISODES, COSTS, "table.csv", "table.parquet", "per_task.csv", "per_task.parquet", "index.html")
        return Stage(
            "benchmark",
            "benchmark",
            self._command,
            {"reference": [benchmark.reference, benchmark.reference_arm]},
            work,
            VERSION,
            {each.title: each.stages.evaluate for each in self.cells} | {"dataset": self.base.dataset},
            outputs=tuple(map(Path, outputs)),
        )

    @property
    def _command(self) -> str:
        return f"promptdiffuser benchmark {self.benchmark.name}"


def _named(inputs: Mapping[str, Stage | Given]) -> Iterator[tuple[str, Stage | Given]]:
    """Yield inputs by names that those of several cells do not share."""
    yield from ((f"{node.name}-{node.key[:8]}", node) for node in inputs.values())


def train_side_by_side(run: StageRun, trainings: Sequence[tuple[DiffuserStage, ExperimentRun]]) -> None:
    """Train diffusers as one Ray task each, in the folders of their stages."""
    jobs = [job for each, of in trainings if (job := job_of(run.session, each, of)) is not None]
    if not jobs:
        return
    cluster = run.session.experiment.cluster
    connect(cluster)
    try:
        with run.watch_training([job.folder for job in jobs]):
            for job in train_many(jobs, num_gpus=cluster.gpus_per_task):
                job.run.finish()
    except BaseException as error:
        for job in jobs:
            job.run.finish("FINISHED" if is_whole(job.folder / MODEL) else status_of(type(error)))
        raise


def _facts(session: Session, base: Base, benchmark: Benchmark) -> dict[str, object]:
    """Return what makes a family's numbers repeatable."""
    protocol = base.experiment.evaluation
    return {
        "Command": typed_command(),
        "Dataset": session.dataset(base.dataset, base.experiment).manifest.digest,
        "Backbone": ", ".join(str(session.store.content(backbone.node)) for backbone in base.backbones.values()),
        "Seeds": ", ".join(map(str, benchmark.seeds)),
        "Few-shot episodes": ", ".join(map(str, benchmark.few_shot_episodes)),
        "Episodes a test task": f"{protocol.prompts} prompts x {protocol.episodes_per_prompt}, {protocol.prompt_use}",
        "Precision of evaluation": protocol.precision,
        "Start states": "drawn anew for each seed",
    }


def graph_of(options: BenchmarkOptions, family: str) -> tuple[JobOptions, BenchmarkGraph]:
    """Return the graph of a benchmark on one family, and the options of its base experiment."""
    benchmark = options.benchmark.of_arms(options.arms) if options.arms else options.benchmark
    base_options = JobOptions(
        benchmark.base(family), options.outputs, options.dataset, options.backbone_checkpoint, rerun=options.rerun
    )
    return base_options, BenchmarkGraph(base_options, benchmark, f"{benchmark.name} {family}")


def run_family(options: BenchmarkOptions, family: str) -> None:
    """Run the benchmark on one family and print its table."""
    base_options, benchmark = graph_of(options, family)
    check_names(benchmark.graph, "--rerun", options.rerun)
    with Session(base_options, benchmark.title, "benchmark") as session:
        benchmark.open_runs(session)
        for stage, title in benchmark.in_order():
            session.make([stage], benchmark.runs[title] if title else None)
            if stage.kind == "evaluate" and title:
                benchmark.runs[title].finish(None)
        folder = session.product(benchmark.results)
        print_table(session.console, _table(family, pd.read_csv(folder / "table.csv")))
        session.console.print(f"page     {folder / 'index.html'}", soft_wrap=True)


def _table(family: str, rows: pd.DataFrame) -> Table:
    """Return the table without the columns that tell nothing apart."""
    seeds = rows["seeds"].max()
    table = Table(title=f"{family}, one backbone: mean return over test tasks and {seeds} seed{'s' * bool(seeds > 1)}")
    texts = pd.DataFrame(_texts(row) for row in rows.to_dict("records"))
    always = ("method", "return", "normalised")
    shown = [column for column in texts if column in always or texts[column].nunique() > 1]
    for column in shown:
        table.add_column(column, justify="left" if column in ("arm", "method") else "right", no_wrap=True)
    for row in texts[shown].to_numpy():
        table.add_row(*row)
    table.add_section()
    scores = reference_scores(get_family(family))
    for policy in FLOORS:
        mean, normalised = scores[policy]["mean"], scores[policy]["normalised"]
        cells = {shown[0]: policy, "return": f"{mean:.1f}", "normalised": f"{normalised:.3f}"}
        table.add_row(*(cells.get(column, "") for column in shown), style="dim")
    return table


def _texts(row: dict[str, Any]) -> dict[str, str]:
    return {
        "arm": str(row["arm"]),
        "few-shot": f"{row['few_shot_episodes']}",
        "method": row["method"],
        "return": _with_interval(row, "return", ".1f"),
        "normalised": known(row["normalised"], ".3f"),
        "difference": "" if pd.isna(row["difference"]) else _with_interval(row, "difference", "+.1f"),
        "verdict": row["verdict"],
        "numbers": f"{row['tunable']:.0f}",
        "updates": f"{row['updates']:.0f}",
        "episodes": f"{row['episodes']:.0f}",
        "seconds": f"{row['adapt_s']:.1f}",
    }


def _with_interval(row: dict[str, Any], name: str, form: str) -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], form)


def main(options: BenchmarkOptions) -> None:
    """Run the benchmark on every family."""
    for family in options.benchmark.families:
        run_family(options, family)
