"""Run an experiment from its first stage to its report; finished stages are recognised, interrupted ones continue.

promptdiffuser run quickstart
promptdiffuser run --from-run RUN_ID        (the experiment of an MLflow run again)
promptdiffuser run --from-file best.json    (a saved experiment, such as the best configuration of a sweep)
"""

import shutil
from pathlib import Path

from rich.table import Table

from promptdiffuser.console import known, print_table, with_interval
from promptdiffuser.evaluation.scores import FLOORS, nothing_learned
from promptdiffuser.evaluation.summary import EvaluationSummary, read_summary
from promptdiffuser.files import point, writing_below
from promptdiffuser.pipeline.experiment_graph import graph_of
from promptdiffuser.pipeline.graph import Stage, check_names
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Session
from promptdiffuser.pipeline.stages.evaluate import SUMMARY
from promptdiffuser.reporting.report import write_report
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.store import resolve_uri

RESULTS = (SUMMARY, "report.html", "experiment.json")
"""Files of a finished experiment."""


def run_experiment(options: JobOptions) -> Path:
    """Run every stage, then write the results and print the table; return the folder of the results."""
    experiment = graph_of(options)
    check_names(experiment.graph, "--rerun", options.rerun)
    with Session(options) as session:
        session.make(experiment.graph)
    with writing_below(session.folder):  # after the session, so that MLflow has what the report reads
        results = write_results(session, experiment.evaluate)
    print_table(session.console, _table(read_summary((results / SUMMARY).read_text())))
    session.console.print(f"summary  {results / SUMMARY}", soft_wrap=True)
    session.console.print(f"report   {results / 'report.html'}", soft_wrap=True)
    session.console.print("runs     make ui   (MLflow on http://127.0.0.1:5000)")
    return results


def write_results(session: Session, evaluation: Stage) -> Path:
    """Write `RESULTS` into a folder of this evaluation's own, so that other settings keep theirs, and return it.

    `latest`, and the names of the files beside it, point to the results that were written last.
    """
    folder = session.folder / f"results-{evaluation.key[:8]}"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(session.product(evaluation) / SUMMARY, folder / SUMMARY)
    (folder / "experiment.json").write_text(session.experiment.to_json())
    write_report(resolve_uri(), session.experiment.name, folder / "report.html", session.own.log.run_id)
    latest = session.folder / "latest"
    point(latest, folder)
    for name in RESULTS:
        point(session.folder / name, (latest if latest.is_symlink() else folder) / name)
    return folder


def _table(summary: EvaluationSummary) -> Table:
    family, tasks = get_family(summary["family"]), f"{len(summary['test_tasks'])} tasks"
    seen = "also trained on" if family.tests_on_training_tasks else "never seen in training"
    methods, references = summary["methods"], summary["references"]
    cautions = [*filter(None, [family.caution]), *nothing_learned(methods, references)]
    table = Table(title=f"{family.name}: {tasks} {seen}", caption="\n".join(cautions) or None)
    success = ["success"] if family.has_success else []
    for column in ("method", "mean return (95 % int.)", "normalised", *success, "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method, result in methods.items():
        table.add_row(
            method,
            with_interval(result["mean"], result["ci_low"], result["ci_high"]),
            known(result["normalised"], ".3f"),
            *(f"{result['success']:.0%}" for _ in success),
            f"{result['seconds_adapt'] + result['seconds']:.0f}",
        )
    table.add_section()
    for policy in FLOORS:
        reference = references[policy]
        table.add_row(policy, f"{reference['mean']:.1f}", f"{reference['normalised']:.3f}", style="dim")
    return table
