"""What the trainings take from an experiment: whose statistics, whose files."""

import dataclasses

from promptdiffuser.data.store import Dataset
from promptdiffuser.experiment import Experiment, PretrainingConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.trainings import rounds_of, statistics_tasks

FAMILY = get_family("cheetah-vel")
EXPERIMENT = Experiment(name="some", quality="expert")


def test_statistics_leave_test_tasks_out_unless_the_published_way_is_asked_for() -> None:
    assert statistics_tasks(EXPERIMENT) == FAMILY.train_tasks
    assert not set(statistics_tasks(EXPERIMENT)) & set(FAMILY.test_tasks)
    published = dataclasses.replace(EXPERIMENT, pretraining=PretrainingConfig(statistics="all"))
    assert set(statistics_tasks(published)) == set(FAMILY.tasks)


def test_rounds_know_the_episodes_of_every_training_file(small_dataset: Dataset) -> None:
    rounds = rounds_of(small_dataset, EXPERIMENT)
    assert rounds.file_episodes == (3,) * len(FAMILY.train_tasks)
    assert rounds.config == EXPERIMENT.rounds
