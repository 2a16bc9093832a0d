"""What the denoiser may be told of a task: y, few-shot transitions, or the goal as an upper bound."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.tasks import FAMILIES, get_family
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.model_folders import goals_of, load_diffuser
from promptdiffuser.training.trainings import DiffuserTraining, make_resident
from tests.training.workers import shares_of_one_and_of_two_workers

CPU = torch.device("cpu")
FAMILY = get_family("cheetah-vel")


def seeing(training: DiffuserTraining, with_context: bool = True, **options: object) -> DiffuserTraining:
    return replace(training, denoiser=replace(training.denoiser, **options), with_context=with_context)


def learning(training: DiffuserTraining, episodes: Episodes) -> DiffuserLearning:
    return training.learning_task(*make_resident(training, episodes, CPU), CPU)


def test_goals_stand_in_for_transitions(diffuser_training: DiffuserTraining, episodes: Episodes) -> None:
    """cheetah-vel's goal is one number, the speed, here standardised over the training tasks."""
    task = learning(seeing(diffuser_training, context="goal"), episodes)
    goals = np.array([FAMILY.goal(t)[0] for t in FAMILY.train_tasks])
    expected = (np.array([FAMILY.goal(t)[0] for t in episodes.tasks]) - goals.mean()) / goals.std()
    assert task.pool.transitions.shape == (12, 1, 1)
    np.testing.assert_allclose(task.pool.transitions[:, 0, 0], expected, rtol=1e-5)


def test_a_variant_without_context_sees_no_goal(diffuser_training: DiffuserTraining, episodes: Episodes) -> None:
    task = learning(seeing(diffuser_training, with_context=False, context="goal"), episodes)
    assert task.diffuser.goals_UG is None
    assert task.model.encode_context is None


def test_two_workers_and_a_saved_folder_know_the_goals(
    diffuser_training: DiffuserTraining, episodes: Episodes, tmp_path: Path
) -> None:
    training = seeing(diffuser_training, context="goal")
    one, first, second = shares_of_one_and_of_two_workers(training, episodes)
    torch.testing.assert_close(first.gradients_GP + second.gradients_GP, one.gradients_GP)
    task = learning(training, episodes)
    training.save(tmp_path / "model", task, dict(task.model.state_dict()))
    loaded = load_diffuser(tmp_path / "model", FAMILY, CPU)
    pool = make_resident(training, episodes, CPU)[1]
    assert torch.equal(loaded.seen(pool).transitions, task.pool.transitions)
    assert loaded.seen(pool).index is pool.index


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_tells_finite_goals_of_all_its_tasks(name: str) -> None:
    family = get_family(name)
    goals_UG = goals_of(family)
    assert goals_UG[list(family.tasks)].isfinite().all()
    training = goals_UG[list(family.train_tasks)]
    torch.testing.assert_close(training.mean(0), torch.zeros(training.shape[1]), atol=1e-4, rtol=0)
