"""The shipped experts, their networks, and the random policy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import ExpertNetwork, ExpertPolicy, RandomPolicy, shipped_weights
from promptdiffuser.tasks.family import TaskFamily

PLATFORM = Path(__file__).resolve().parents[2] / "platform"
QUALITIES = ("expert", "medium")
SLACK = 15.0
"""Allowed difference between a mean over one episode a task and the recorded mean."""

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def record_of(family: TaskFamily, quality: str) -> dict:
    return json.loads(shipped_weights(family.name, quality).with_suffix(".json").read_text())


def mean_return(family: TaskFamily, quality: str) -> float:
    requests = [EpisodeRequest(task, 1_000 + task) for task in family.tasks]
    policy = ExpertPolicy(family, ExpertNetwork.load(shipped_weights(family.name, quality)))
    return float(EpisodeStepper(family).run(requests, policy).returns.mean())


def random_network(seed: int = 0) -> ExpertNetwork:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return ExpertNetwork(
        feature_mean=normal(18),
        feature_std=np.abs(normal(18)) + 0.1,
        weights=(normal(18, 16) / 4, normal(16, 16) / 4, normal(16, 6) / 4),
        biases=(normal(16), normal(16), normal(6)),
    )


@every_family
@pytest.mark.parametrize("quality", QUALITIES)
def test_record_says_how_the_policy_was_made_and_what_it_returns(family: TaskFamily, quality: str) -> None:
    record = record_of(family, quality)
    assert record["family"] == family.name
    assert record["quality"] == quality
    assert record["command"].startswith("python jobs/experts.py")
    assert sorted(int(task) for task in record["returns_by_task"]) == list(family.tasks)
    assert record["mean_return"] == pytest.approx(np.mean(list(record["returns_by_task"].values())))
    assert record["versions"]["mujoco"]


@every_family
def test_shipped_policies_return_what_their_records_say(family: TaskFamily) -> None:
    returns = {quality: mean_return(family, quality) for quality in QUALITIES}
    for quality in QUALITIES:
        assert returns[quality] == pytest.approx(record_of(family, quality)["mean_return"], abs=SLACK), quality
    assert returns["expert"] > returns["medium"] + 2 * SLACK
    assert returns["medium"] > record_of(family, "medium")["random_mean_return"] + 2 * SLACK


@every_family
def test_expert_solves_every_test_task_better_than_the_random_policy(family: TaskFamily) -> None:
    requests = [EpisodeRequest(task, 5) for task in family.test_tasks]
    stepper = EpisodeStepper(family)
    network = ExpertNetwork.load(shipped_weights(family.name, "expert"))
    expert = stepper.run(requests, ExpertPolicy(family, network)).returns
    chance = stepper.run(requests, RandomPolicy(family, [request.seed for request in requests])).returns
    assert (expert > chance).all()


def test_shipped_weights_load_and_act_without_stable_baselines3() -> None:
    program = """
import sys
sys.modules["stable_baselines3"] = None  # importing it now fails
import numpy as np
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import ExpertNetwork, ExpertPolicy, shipped_weights
for family in FAMILIES.values():
    for quality in ("expert", "medium"):
        policy = ExpertPolicy(family, ExpertNetwork.load(shipped_weights(family.name, quality)))
        policy.begin([0, 1])
        actions = policy.act(np.zeros((2, family.observation_dim), np.float32))
        assert actions.shape == (2, family.action_dim) and np.isfinite(actions).all()
        print("acts", family.name, quality)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(PLATFORM)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("acts") == len(FAMILIES) * len(QUALITIES)


def test_missing_policy_is_named_with_the_job_that_makes_it() -> None:
    with pytest.raises(UserError, match=r"no superb policy .* cheetah-vel; .*jobs/experts.py --family cheetah-vel"):
        shipped_weights("cheetah-vel", "superb")


def test_saved_network_is_restored_exactly(tmp_path: Path) -> None:
    network = random_network()
    network.save(tmp_path / "weights", "some-expert", {"mean_return": -1.5})
    restored = ExpertNetwork.load(tmp_path / "weights" / "some-expert.safetensors")
    features = np.random.default_rng(1).normal(size=(7, 18)).astype(np.float32)
    assert np.array_equal(network(features), restored(features))
    assert len(restored.weights) == len(network.weights)
    assert json.loads((tmp_path / "weights" / "some-expert.json").read_text()) == {"mean_return": -1.5}


def test_network_equals_a_tanh_mlp_on_clipped_standardised_features() -> None:
    network = random_network()
    layers: list[torch.nn.Module] = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        linear = torch.nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": torch.from_numpy(weight.T.copy()), "bias": torch.from_numpy(bias)})
        layers += [linear, torch.nn.Tanh()]
    mlp = torch.nn.Sequential(*layers[:-1])
    features = np.random.default_rng(2).normal(size=(32, 18), scale=3).astype(np.float32)
    features[:4] *= 100  # far beyond ten standard deviations
    standard = torch.from_numpy((features - network.feature_mean) / network.feature_std).clamp(-10, 10)
    assert (standard.abs() == 10).any()
    with torch.no_grad():
        expected = mlp(standard).numpy()
    assert network(features).dtype == np.float32
    np.testing.assert_allclose(network(features), expected, atol=1e-5)


def test_expert_is_told_each_episodes_goal() -> None:
    family = FAMILIES["cheetah-vel"]
    policy = ExpertPolicy(family, random_network())
    observations = np.zeros((2, family.observation_dim), np.float32)
    policy.begin([0, 39])
    both = policy.act(observations)
    policy.begin([39, 0])
    np.testing.assert_allclose(policy.act(observations), both[::-1], atol=1e-6)
    assert not np.allclose(both[0], both[1])


@every_family
def test_random_actions_of_an_episode_do_not_depend_on_its_batch(family: TaskFamily) -> None:
    def actions(seeds: list[int]) -> np.ndarray:
        policy = RandomPolicy(family, seeds)
        policy.begin([family.tasks[0]] * len(seeds))
        observations = np.zeros((len(seeds), family.observation_dim), np.float32)
        return np.stack([policy.act(observations) for _ in range(family.horizon)])

    batch = actions([11, 12, 13])
    assert np.array_equal(batch[:, 1:2], actions([12]))
    assert np.array_equal(batch, actions([11, 12, 13]))
    assert not np.array_equal(batch[:, 0], batch[:, 1])
    assert np.abs(batch).max() <= 1
    assert batch.mean() == pytest.approx(0, abs=0.05)
    assert batch.std() == pytest.approx(1 / np.sqrt(3), abs=0.05)
