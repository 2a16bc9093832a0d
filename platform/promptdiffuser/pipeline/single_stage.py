"""The stages of one kind of an experiment, whose inputs must be finished."""

from promptdiffuser.errors import UserError
from promptdiffuser.pipeline.experiment_graph import graph_of
from promptdiffuser.pipeline.graph import check_names
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Session


def collect(options: JobOptions) -> None:
    """Collect the dataset."""
    _make(options, "collect")


def pretrain(options: JobOptions) -> None:
    """Pre-train the backbones."""
    _make(options, "pretrain")


def train_diffuser(options: JobOptions) -> None:
    """Train the diffusers, after tuning the prompts that they learn from."""
    _make(options, "optimise-prompts", "train-diffuser")


def adapt(options: JobOptions) -> None:
    """Adapt the frozen backbone to every test task by every method."""
    _make(options, "adapt")


def evaluate(options: JobOptions) -> None:
    """Evaluate every method on the test tasks."""
    _make(options, "evaluate")


def _make(options: JobOptions, *kinds: str) -> None:
    """Make the stages of some kinds and print where their results lie."""
    stages = graph_of(options).graph.of_kind(*kinds)
    if not stages:
        raise UserError(f"{options.experiment.name} has no stage of kind {kinds[-1]}: its methods or options need none")
    check_names(stages, "--rerun", options.rerun)
    with Session(options) as session:
        for stage in stages:
            session.make([stage])
            for part in stage.parts:
                print(session.folder / part.folder)
            if not stage.parts:
                print(session.product(stage))
