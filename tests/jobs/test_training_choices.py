"""What the pretrain job makes of an experiment: whose statistics, whose files, what a snapshot is scored by."""

import dataclasses
from types import ModuleType

import pytest

from promptdiffuser.data.store import Dataset
from promptdiffuser.experiment import Experiment, PretrainingConfig
from promptdiffuser.tasks import get_family

FAMILY = get_family("cheetah-vel")
EXPERIMENT = Experiment(name="some", quality="expert")


@pytest.fixture
def pretrain(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "jobs")
    import pretrain

    return pretrain


def test_statistics_leave_test_tasks_out_unless_the_published_way_is_asked_for(pretrain: ModuleType) -> None:
    assert pretrain.statistics_tasks(EXPERIMENT) == FAMILY.train_tasks
    assert not set(pretrain.statistics_tasks(EXPERIMENT)) & set(FAMILY.test_tasks)
    published = dataclasses.replace(EXPERIMENT, pretraining=PretrainingConfig(statistics="all"))
    assert set(pretrain.statistics_tasks(published)) == set(FAMILY.tasks)


def test_rounds_know_the_episodes_of_every_training_file(pretrain: ModuleType, small_dataset: Dataset) -> None:
    rounds = pretrain.rounds_of(small_dataset, EXPERIMENT)
    assert rounds.file_episodes == (3,) * len(FAMILY.train_tasks)
    assert rounds.config == EXPERIMENT.rounds


def test_snapshots_are_scored_with_what_the_evaluation_shows_of_a_task(
    pretrain: ModuleType, small_dataset: Dataset
) -> None:
    validation = pretrain.validation_of(small_dataset, EXPERIMENT, "prompt-dt")
    assert validation.protocol.few_shot == EXPERIMENT.evaluation.few_shot
    assert (validation.protocol.prompts, validation.protocol.episodes_per_prompt) == (5, 2)
    assert validation.backbone_folder is None
