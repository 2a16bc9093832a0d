"""What the trainings take from an experiment: whose statistics, whose files."""

import dataclasses

from promptdiffuser.assembly import rounds_of, statistics_tasks
from promptdiffuser.data.plans import EpisodeIndex, Planner, RoundsConfig
from promptdiffuser.data.store import Dataset
from promptdiffuser.experiment import ClusterConfig, Experiment, PretrainingConfig
from promptdiffuser.tasks import get_family

FAMILY = get_family("cheetah-vel")
EXPERIMENT = Experiment(name="some", quality="expert")


def test_statistics_leave_test_tasks_out_unless_the_published_way_is_asked_for() -> None:
    assert statistics_tasks(EXPERIMENT) == FAMILY.train_tasks
    assert not set(statistics_tasks(EXPERIMENT)) & set(FAMILY.test_tasks)
    published = dataclasses.replace(EXPERIMENT, pretraining=PretrainingConfig(statistics="all"))
    assert set(statistics_tasks(published)) == set(FAMILY.tasks)


def test_a_streamed_training_has_rounds_over_every_training_file(small_dataset: Dataset) -> None:
    rounds = rounds_of(small_dataset, dataclasses.replace(EXPERIMENT, cluster=ClusterConfig(data="streaming")))
    assert [size.task for size in rounds.sizes] == list(FAMILY.train_tasks)
    assert {size.episodes for size in rounds.sizes} == {3}
    assert rounds.config == EXPERIMENT.rounds


def test_a_resident_training_draws_every_batch_from_everything(small_dataset: Dataset) -> None:
    """However small its rounds would be, and whatever they are set to."""
    small_rounds = dataclasses.replace(EXPERIMENT, rounds=RoundsConfig(env_steps=1, updates=1))
    rounds = rounds_of(small_dataset, small_rounds)
    assert rounds.settings is None
    episodes = small_dataset.read(FAMILY.train_tasks)
    planner = Planner(EpisodeIndex(episodes.tasks, episodes.lengths), 4_000, 5, (0, "test"), rounds=rounds)
    assert set(episodes.tasks[planner.at(0).episodes].tolist()) == set(FAMILY.train_tasks)
