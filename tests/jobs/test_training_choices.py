"""What the pretrain job makes of an experiment: what a snapshot is scored by, what data its methods need."""

import dataclasses
from types import SimpleNamespace

import pytest

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.store import Dataset
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import CollectionConfig, Experiment
from promptdiffuser.pipeline.stages import pretrain
from promptdiffuser.rollout.protocol import ProtocolConfig

EXPERIMENT = Experiment(name="some", quality="expert")


def test_snapshots_are_scored_with_what_the_evaluation_shows_of_a_task(small_dataset: Dataset) -> None:
    validation = pretrain.validation_of(small_dataset, EXPERIMENT, "prompt-dt")
    assert validation.protocol.few_shot == EXPERIMENT.evaluation.few_shot
    assert (validation.protocol.prompts, validation.protocol.episodes_per_prompt) == (5, 2)
    assert validation.backbone_folder is None


@dataclasses.dataclass(eq=False)
class Passed:
    """What a job knows of a dataset that it was passed."""

    experiment: Experiment
    options: SimpleNamespace
    base: None = None


def test_a_dataset_without_the_quality_that_a_method_asks_for_is_refused_first(small_dataset: Dataset) -> None:
    experiment = dataclasses.replace(
        EXPERIMENT,
        methods=("prompt-dt", "prompt-dt-medium"),
        collection=CollectionConfig(qualities=("expert", "medium")),
        evaluation=ProtocolConfig(few_shot=FewShotConfig(episodes=3)),
    )
    options = SimpleNamespace(dataset=str(small_dataset.location))
    without = dataclasses.replace(experiment, methods=("prompt-dt",))
    assert pretrain.checked_dataset(Passed(without, options)).manifest == small_dataset.manifest
    with pytest.raises(UserError, match=r"no medium episodes of task\(s\) \[2\]"):
        pretrain.checked_dataset(Passed(experiment, options))
