"""How `jobs/experts.py` trains and chooses, without training: the environment it learns in, and its rules."""

import numpy as np
import pytest

from promptdiffuser.pipeline import experts
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import ExpertNetwork, NetworkPolicy
from promptdiffuser.tasks.family import LearnedExpert, TaskFamily

LEARNED = [family for family in FAMILIES.values() if isinstance(family.expert, LearnedExpert)]
every_learned_family = pytest.mark.parametrize("family", LEARNED, ids=lambda family: family.name)


@every_learned_family
def test_the_training_environment_shows_features_and_becomes_every_task(family: TaskFamily) -> None:
    assert isinstance(family.expert, LearnedExpert)
    env = experts.EveryTask(family)
    env.reset(seed=3)
    tasks = set()
    for _ in range(20 * len(family.tasks)):
        features, _ = env.reset()
        tasks.add(env.task)
    assert tasks == set(family.tasks)
    assert features.shape == env.observation_space.shape
    assert env.reset(seed=3)[0].tolist() == experts.EveryTask(family).reset(seed=3)[0].tolist()


@every_learned_family
def test_what_is_learned_there_acts_in_the_stepping_engine_as_it_did_there(family: TaskFamily) -> None:
    env = experts.EveryTask(family)
    rng = np.random.default_rng(0)
    num_features = env.observation_space.shape[0]
    network = ExpertNetwork(
        np.zeros(num_features, np.float32),
        np.ones(num_features, np.float32),
        (rng.normal(size=(num_features, family.action_dim)).astype(np.float32) / 20,),
        (np.zeros(family.action_dim, np.float32),),
    )
    features, _ = env.reset(seed=5)
    task, rewards, ended = env.task, [], False
    while not ended:
        action = np.clip(network(features[None])[0], -1, 1)
        features, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        ended = terminated or truncated
    assert truncated == (len(rewards) == family.horizon)
    assert family.terminates or not terminated

    # The same episode once more, from the seed that the environment drew for the simulator.
    drawn = np.random.Generator(np.random.PCG64(np.random.SeedSequence(5)))
    assert drawn.choice(family.tasks) == task
    request = EpisodeRequest(task, int(drawn.integers(2**31)))
    episodes = EpisodeStepper(family).run([request], NetworkPolicy(family, network))
    assert episodes.lengths[0] == len(rewards)
    np.testing.assert_allclose(episodes.rewards[0, : len(rewards)], rewards, atol=1e-5)


def test_expert_is_the_best_checkpoint_of_all_seeds_and_medium_the_first_half_way_of_the_same() -> None:
    def training(*returns: float) -> list:
        return [experts.Checkpoint(100 * place, value, None) for place, value in enumerate(returns)]

    trained = {0: training(-10, 30, 80, 90, 85), 1: training(-20, 44, 46, 40, 100, 95), 2: training(0, 99)}
    seed, chosen = experts.choose_network(trained, random_mean=-10.0)
    assert seed == 1
    assert {quality: checkpoint.mean_return for quality, checkpoint in chosen.items()} == {"expert": 100, "medium": 46}
    assert chosen["medium"].steps == 200


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_calibration_tasks_are_spread_over_the_family(family: TaskFamily) -> None:
    tasks = experts.calibration_tasks(family)
    assert len(tasks) == min(10, len(family.tasks))
    assert set(tasks) <= set(family.tasks)
    steps = np.diff([family.tasks.index(task) for task in tasks])
    assert set(steps) == {max(1, len(family.tasks) // 10)}


def test_episodes_that_select_are_not_those_that_measure() -> None:
    first = {purpose: experts.requests_of(purpose, [3, 7], 4, 0) for purpose in ("select", "final")}
    assert [request.task for request in first["select"]] == [3] * 4 + [7] * 4
    seeds = [request.seed for requests in first.values() for request in requests]
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 2**31 for seed in seeds)
