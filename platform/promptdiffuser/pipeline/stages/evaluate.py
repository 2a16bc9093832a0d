"""Every method's policies play episodes on the test tasks.

A method's episodes are a part of the stage with a key of their own: a longer list of methods plays the new ones only.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from promptdiffuser.experiment import Experiment
from promptdiffuser.keys import fingerprint
from promptdiffuser.pipeline.graph import Part, Stage
from promptdiffuser.pipeline.stages.adapt import MethodPlan
from promptdiffuser.pipeline.stages.pretrain import evaluation_settings
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.references import reference_returns

if TYPE_CHECKING:
    from promptdiffuser.pipeline.session import StageRun

VERSION = 1
EPISODES, PROMPTS, SUMMARY = "episodes.parquet", "prompts.parquet", "summary.json"
ARTIFACTS = (EPISODES, PROMPTS, SUMMARY)


def stage(experiment: Experiment, plans: list[MethodPlan], adapted: Stage) -> Stage:
    """Return the evaluate stage of an experiment whose methods have adapted."""
    family, cluster = get_family(experiment.family), experiment.cluster
    references = reference_returns(family)

    def work(run: "StageRun") -> None:
        from promptdiffuser.pipeline.work.evaluate import evaluate

        evaluate(run, experiment, plans)

    return Stage(
        "evaluate",
        "evaluate",
        f"promptdiffuser stage evaluate {experiment.name}",
        {
            "methods": [each.method.name for each in plans],
            "evaluation": evaluation_settings(experiment, experiment.evaluation),
            "references": {str(task): vars(references[task]) for task in family.test_tasks},
        },
        work,
        VERSION,
        {"dataset": plans[0].inputs["dataset"], "adapt": adapted},
        outputs=tuple(Path(name) for name in ARTIFACTS),
        parts=tuple(part(each) for each in plans),
        takes=f"{cluster.rollout_actors} rollout actors",
        progress=lambda root, folder: _progress(root, plans),
    )


def part(plan: MethodPlan) -> Part:
    """Return where the episodes of a method's policies are written."""
    experiment, name = plan.experiment, plan.method.name
    key = fingerprint([VERSION, plan.part.key, evaluation_settings(experiment, experiment.evaluation)])
    return Part(name, key, Path("evaluations") / f"{name}-{key[:8]}")


def _progress(root: Path, plans: list[MethodPlan]) -> str:
    return f"{sum(len(list((root / part(each).folder).glob('blocks/*.sha256'))) for each in plans)} blocks of episodes"
