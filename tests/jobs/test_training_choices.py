"""What the pretrain job makes of an experiment: what a snapshot is scored by, what data its methods need."""

import dataclasses

import pytest

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.store import Dataset
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import CollectionConfig, Experiment
from promptdiffuser.pipeline.session import check_dataset
from promptdiffuser.pipeline.work.pretrain import validation_of
from promptdiffuser.rollout.protocol import ProtocolConfig

EXPERIMENT = Experiment(name="some", quality="expert")


def test_snapshots_are_scored_with_what_the_evaluation_shows_of_a_task(small_dataset: Dataset) -> None:
    validation = validation_of(small_dataset, EXPERIMENT, "prompt-dt")
    assert validation.protocol.few_shot == EXPERIMENT.evaluation.few_shot
    assert (validation.protocol.prompts, validation.protocol.episodes_per_prompt) == (5, 2)
    assert validation.backbone_folder is None


def test_a_dataset_without_the_quality_that_a_method_asks_for_is_refused_first(small_dataset: Dataset) -> None:
    experiment = dataclasses.replace(
        EXPERIMENT,
        methods=("prompt-dt", "prompt-dt-medium"),
        collection=CollectionConfig(qualities=("expert", "medium")),
        evaluation=ProtocolConfig(few_shot=FewShotConfig(episodes=3)),
    )
    check_dataset(small_dataset, dataclasses.replace(experiment, methods=("prompt-dt",)))
    with pytest.raises(UserError, match=r"no medium episodes of task\(s\) \[2\]"):
        check_dataset(small_dataset, experiment)
