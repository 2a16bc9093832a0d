"""The table at the end of `jobs/pipeline.py`: methods beside the policies that ignore what they observe."""

import io

import pytest
from rich.console import Console

from promptdiffuser.evaluation.scores import reference_scores
from promptdiffuser.pipeline import run
from promptdiffuser.tasks import get_family


@pytest.mark.parametrize("name", ["ant-dir", "reach"])
def test_floors_are_rows_and_methods_that_do_not_beat_them_are_named(name: str) -> None:
    family = get_family(name)
    references = reference_scores(family)
    floor = max(references["zero-action"]["mean"], references["mean-action"]["mean"])

    def result(mean: float, low: float) -> dict[str, float]:
        cost = {"success": 0.5, "seconds_adapt": 1.0, "seconds": 2.0}
        return {"mean": mean, "ci_low": low, "ci_high": mean + 10, "normalised": 0.3} | cost

    methods = {
        "prompt-dt": result(floor - 5, floor - 9),
        "ppdt": result(floor + 5, floor - 1),
        "full-finetuning": result(floor + 9, floor + 3),
    }
    summary = {"family": name, "test_tasks": family.test_tasks, "methods": methods, "references": references}
    console = Console(file=io.StringIO(), width=140)
    console.print(run._table(summary))
    shown = console.file.getvalue()
    for policy in ("random", "zero-action", "mean-action"):
        (row,) = [line for line in shown.splitlines() if f" {policy} " in line]
        assert f"{references[policy]['mean']:.1f}" in row
        assert f"{references[policy]['normalised']:.3f}" in row
    assert "Nothing shows that these learned anything" in " ".join(shown.split())
