"""Run an experiment from its first stage to its report; finished stages are recognised, interrupted ones continue.

python jobs/pipeline.py quickstart
python jobs/pipeline.py --from-run RUN_ID        (the experiment of an MLflow run again)
python jobs/pipeline.py --from-file best.json    (a saved experiment, such as the best configuration of a sweep)
"""

import json
import shutil
from pathlib import Path
from typing import Any

from rich.table import Table

from promptdiffuser.console import known, print_table, with_interval
from promptdiffuser.evaluation.scores import FLOORS, nothing_learned
from promptdiffuser.files import point, writing_below
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Stage, Workspace
from promptdiffuser.pipeline.stages import adapt, collect, evaluate, pretrain, train_diffuser
from promptdiffuser.reporting.report import write_report
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.store import resolve_uri

RESULTS = ("summary.json", "report.html", "experiment.json")
"""Files of a finished experiment."""


def run_experiment(options: JobOptions) -> Path:
    """Run every stage, then write the results and print the table; return the folder of the results."""
    with Workspace(options) as workspace:
        collected = ["collect"] if options.dataset is None else []
        pretrained = map(pretrain.name_of, pretrain.variants(workspace))
        workspace.check_rerun([*collected, *pretrained, *train_diffuser.names(workspace), "adapt", "evaluate"])
        if options.dataset is None:
            workspace.run(collect.stage(workspace))
        for variant in pretrain.variants(workspace):
            workspace.run(pretrain.stage(workspace, variant))
        for stage in train_diffuser.stages(workspace):
            workspace.run(stage)
        workspace.run(adapt.stage(workspace))
        evaluation = evaluate.stage(workspace)
        workspace.run(evaluation)
    with writing_below(workspace.folder):
        results = write_results(workspace, evaluation)
    print_table(workspace.console, _table(json.loads((results / "summary.json").read_text())))
    workspace.console.print(f"summary  {results / 'summary.json'}", soft_wrap=True)
    workspace.console.print(f"report   {results / 'report.html'}", soft_wrap=True)
    workspace.console.print("runs     make ui   (MLflow on http://127.0.0.1:5000)")
    return results


def write_results(workspace: Workspace, evaluation: Stage) -> Path:
    """Write `RESULTS` into a folder of this evaluation's own, so that other settings keep theirs, and return it.

    `latest`, and the names of the files beside it, point to the results that were written last.
    """
    folder = workspace.folder / f"results-{evaluation.fingerprint[:8]}"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(workspace.folder_of(evaluation) / "summary.json", folder / "summary.json")
    (folder / "experiment.json").write_text(workspace.experiment.to_json())
    write_report(resolve_uri(), workspace.experiment.name, folder / "report.html", workspace.run_log.run_id)
    latest = workspace.folder / "latest"
    point(latest, folder)
    for name in RESULTS:
        point(workspace.folder / name, (latest if latest.is_symlink() else folder) / name)
    return folder


def _table(summary: dict[str, Any]) -> Table:
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
