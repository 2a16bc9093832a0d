"""The shipped experts, their records and reference returns; networks, scripts and the random policy."""

import dataclasses
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import RECORDED_PACKAGES
from promptdiffuser.errors import UserError
from promptdiffuser.pipeline.experts import ExpertsJob
from promptdiffuser.rng import seed_at
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES, get_family
from promptdiffuser.tasks.experts import (
    QUALITIES,
    SCRIPT_NOISE,
    Demonstrator,
    ExpertNetwork,
    NetworkPolicy,
    Quality,
    RandomPolicy,
    ScriptedPolicy,
    demonstrators,
    policy_of,
    shipped_demonstrator,
    shipped_file,
)
from promptdiffuser.tasks.family import Controller, LearnedExpert, ScriptedExpert, TaskFamily
from promptdiffuser.tasks.references import Reference, reference_returns
from tests.rollout.synthetic_policies import start_all

PLATFORM = Path(__file__).resolve().parents[2] / "platform"
SHIPPED: tuple[Quality, ...] = ("expert", "medium")
EPISODES = 5
"""Episodes a task that references are measured on. A live measurement runs all of them with a learned policy and the
first with a scripted one: simulating that is slow."""
MEASURED_EPISODES = {"pick-place-500": 2, "reach-500": 2, "ml10": 1, "ml45": 1}
"""Episodes a task of the references where they are not `EPISODES`: long ones that all start alike."""

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_quality = pytest.mark.parametrize("quality", SHIPPED)


def is_learned(family: TaskFamily) -> bool:
    return isinstance(family.expert, LearnedExpert)


def owner_of(family: TaskFamily) -> TaskFamily:
    """Return the family whose expert this one uses: itself, except for ant-dir-ood."""
    return get_family(family.expert_of or family.name)


def record_of(family: TaskFamily, quality: Quality) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(shipped_file(family, quality, "json").read_text())
    return record


def references_document(family: TaskFamily) -> dict[str, Any]:
    path = PLATFORM / "promptdiffuser" / "tasks" / "reference_returns" / f"{owner_of(family).name}.json"
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def run(family: TaskFamily, demonstrator: Demonstrator | None, tasks: Sequence[int], episodes: int) -> Episodes:
    """Run the first episodes that the references were measured on, with random actions if no demonstrator is given."""
    seed = references_document(family)["seed"]
    requests = [
        EpisodeRequest(task, seed_at(seed, "final", task, number) % 2**31)
        for task in tasks
        for number in range(episodes)
    ]
    return EpisodeStepper(family).run(requests, policy_of(family, demonstrator))


@dataclasses.dataclass(frozen=True)
class Live:
    """What one task gives here and now, beside its reference."""

    task: int
    expert: Episodes
    random: Episodes


@functools.cache
def live(name: str) -> list[Live]:
    """Measure three tasks of a family: one of each split."""
    family = FAMILIES[name]
    tasks = sorted({family.train_tasks[0], family.validation_tasks[-1], family.test_tasks[len(family.test_tasks) // 2]})
    episodes = EPISODES if is_learned(family) else 1
    expert, chance = (run(family, d, tasks, episodes) for d in (shipped_demonstrator(family, "expert"), None))
    return [Live(task, expert.select(expert.tasks == task), chance.select(chance.tasks == task)) for task in tasks]


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


# --- what is shipped


@every_family
@every_quality
def test_record_says_how_the_policy_was_made_and_what_it_returns(family: TaskFamily, quality: Quality) -> None:
    record, owner = record_of(family, quality), owner_of(family)
    assert record["family"] == owner.name
    assert record["quality"] == quality
    assert record["rule"] == QUALITIES[quality]
    assert record["command"].startswith("python jobs/experts.py ")
    assert set(record["versions"]) == set(RECORDED_PACKAGES)
    measured = {int(task): value for task, value in record["returns_by_task"].items()}
    assert record["mean_return"] == pytest.approx(np.mean(list(measured.values())))
    if is_learned(family):
        assert list(measured) == list(owner.tasks)
        assert record["environment_steps"] <= record["training"]["total_steps"]
        assert record["training"]["seed"] >= 0
    else:
        # A scripted medium policy is measured on ten tasks spread over the family.
        assert list(measured) == sorted(measured)
        assert set(measured) <= set(owner.tasks)
        stride = references_document(family)["measured_every"]
        assert len(measured) == (len(owner.tasks) // stride if quality == "expert" else 10)
        assert 0 <= record["success"] <= 1


@every_family
@every_quality
def test_recorded_command_has_the_recorded_settings(family: TaskFamily, quality: Quality) -> None:
    record = record_of(family, quality)
    job = tyro.cli(ExpertsJob, args=shlex.split(record["command"])[2:])
    assert owner_of(family).name in job.families
    if is_learned(family):
        seed = record["training"]["seed"]
        assert seed in job.seeds
        assert record["training"] == dataclasses.asdict(job.ppo) | {"seed": seed}


@every_family
def test_medium_policy_lies_between_the_random_policy_and_the_expert(family: TaskFamily) -> None:
    expert, medium = record_of(family, "expert"), record_of(family, "medium")
    assert expert["random_mean_return"] == medium["random_mean_return"] < expert["mean_return"]
    position = (medium["mean_return"] - medium["random_mean_return"]) / (
        expert["mean_return"] - expert["random_mean_return"]
    )
    # Chosen to be next to half of the way, on other episodes than these.
    assert 0.15 < position < 0.9
    if is_learned(family):
        halfway = (expert["random_mean_return"] + expert["selection_mean_return"]) / 2
        assert halfway - 1 <= medium["selection_mean_return"] < expert["selection_mean_return"]
        assert medium["environment_steps"] < expert["environment_steps"]
    else:
        tried = {float(share): value for share, value in medium["mean_return_by_random_share"].items()}
        assert sorted(tried) == pytest.approx(np.arange(11) / 10)
        enough = [share for share, value in tried.items() if value <= (tried[0.0] + tried[1.0]) / 2]
        assert (expert["random_share"], medium["random_share"]) == (0.0, min(enough))
        assert medium["random_share"] > 0


@every_family
def test_every_task_has_references_and_the_expert_beats_random_actions_on_it(family: TaskFamily) -> None:
    references = reference_returns(family)
    assert set(family.tasks) <= set(references)
    beaten = [task for task in family.tasks if references[task].expert_return <= references[task].random_return]
    assert not beaten, f"random actions get as much as the expert on {beaten}"
    assert all(0 <= references[task].expert_success <= family.has_success for task in family.tasks)


@every_family
def test_references_are_those_of_the_shipped_expert(family: TaskFamily) -> None:
    references, record = reference_returns(family), record_of(family, "expert")
    stride = references_document(family)["measured_every"]
    measured = [task for task in family.tasks if stride == 1 or task % stride == 0]
    for task in measured:
        assert references[task].expert_return == pytest.approx(record["returns_by_task"][str(task)], abs=1e-3)
    for task in family.tasks:
        assert stride == 1 or references[task] == references[task - task % stride]
    if not family.expert_of:
        mean = np.mean([references[task].random_return for task in measured])
        assert record["random_mean_return"] == pytest.approx(mean, abs=1e-3)


@every_family
def test_reference_file_says_how_it_was_measured(family: TaskFamily) -> None:
    owner, document = owner_of(family), references_document(family)
    assert document["family"] == owner.name
    assert document["command"].startswith("python jobs/experts.py ")
    assert set(document["columns"]) == {field.name for field in dataclasses.fields(Reference)}
    assert document["episodes_per_task"] == MEASURED_EPISODES.get(owner.name, EPISODES)
    assert document["measured_every"] == (5 if owner.name == "ml45" else 1)
    assert isinstance(document["seed"], int)
    assert set(document["versions"]) == set(RECORDED_PACKAGES)
    assert [int(task) for task in document["tasks"]] == list(owner.tasks)


@pytest.mark.parametrize(
    ("name", "field", "bar"),
    [
        ("cheetah-vel", "mean_return", -28.0),
        ("cheetah-dir", "mean_return", 1100.0),
        ("ant-dir", "mean_return", 650.0),
        ("pick-place", "success", 0.95),
        ("reach", "success", 1.0),
    ],
)
def test_expert_is_as_good_as_it_has_to_be(name: str, field: str, bar: float) -> None:
    assert record_of(FAMILIES[name], "expert")[field] >= bar


def test_missing_policy_is_named_with_the_job_that_makes_it() -> None:
    superb: Any = "superb"
    for name, owner in (("cheetah-vel", "cheetah-vel"), ("ant-dir-ood", "ant-dir")):
        with pytest.raises(UserError, match=rf"no superb policy .* {owner}; .*`python jobs/experts\.py {owner}`"):
            shipped_file(FAMILIES[name], superb, "json")


def test_missing_references_are_named_with_the_job_that_measures_them() -> None:
    family = dataclasses.replace(FAMILIES["cheetah-vel"], name="cheetah-fly")
    with pytest.raises(UserError, match=r"no reference returns .* cheetah-fly; `python jobs/experts\.py cheetah-fly`"):
        reference_returns(family)


def test_shipped_policies_load_and_act_without_stable_baselines3() -> None:
    program = """
import sys
sys.modules["stable_baselines3"] = None  # importing it now fails
import numpy as np
from promptdiffuser.rollout.stepping import EpisodeRequest
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import policy_of, shipped_demonstrator
for family in FAMILIES.values():
    for quality in ("expert", "medium"):
        policy = policy_of(family, shipped_demonstrator(family, quality))
        policy.begin(2)
        policy.start(np.arange(2), [EpisodeRequest(task, 0) for task in family.tasks[:2]])
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
    assert result.stdout.count("acts") == len(FAMILIES) * len(SHIPPED)


# --- live


@every_family
def test_live_expert_beats_random_actions(family: TaskFamily) -> None:
    for measured in live(family.name):
        assert measured.expert.returns.mean() > measured.random.returns.mean(), measured.task


@every_family
def test_live_returns_lie_near_the_references(family: TaskFamily) -> None:
    references = reference_returns(family)
    for measured in live(family.name):
        reference, task = references[measured.task], measured.task
        if is_learned(family):
            # The same episodes, though a last bit may grow in them: an error of the means would be five sigma.
            for episodes, recorded in (
                (measured.expert, reference.expert_return),
                (measured.random, reference.random_return),
            ):
                slack = 5 * episodes.returns.std(ddof=1) / np.sqrt(len(episodes))
                slack += 0.01 * (reference.expert_return - reference.random_return)
                assert episodes.returns.mean() == pytest.approx(recorded, abs=slack), task
        elif reference.expert_success in (0.0, 1.0):
            # Episodes that end alike return nearly the same: all of them start alike, and noise is small.
            assert measured.expert.successes.mean() == reference.expert_success, task
            assert measured.expert.returns.mean() == pytest.approx(reference.expert_return, rel=0.25), task


@pytest.mark.parametrize("name", ["pick-place", "pick-place-500", "reach", "reach-500"])
def test_live_scripts_solve_their_tasks(name: str) -> None:
    assert all(measured.expert.successes.all() for measured in live(name))


# --- networks


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


def test_network_is_told_each_episodes_goal_and_read_as_the_family_says() -> None:
    family, network = FAMILIES["cheetah-vel"], random_network()
    policy = NetworkPolicy(family, network)
    observations = np.random.default_rng(3).normal(size=(2, family.observation_dim)).astype(np.float32)
    start_all(policy, [EpisodeRequest(task, 0) for task in (0, 39)])
    features = np.column_stack([observations[:, :17], [0.075, 3.0]]).astype(np.float32)
    np.testing.assert_allclose(policy.act(observations), network(features), atol=1e-6)

    expert = LearnedExpert(lambda seen, goal: np.column_stack([seen[:, :17], goal]), lambda out, goal: -out * goal)
    policy = NetworkPolicy(dataclasses.replace(family, expert=expert), network)
    start_all(policy, [EpisodeRequest(task, 0) for task in (0, 39)])
    np.testing.assert_allclose(policy.act(observations), -network(features) * features[:, 17:], atol=1e-6)


# --- scripts, on a controller that is no simulator's


class Counting:
    """Adds up the goals that it was shown: a controller with memory, which asks for more than there is at times."""

    made = 0

    def __init__(self, task: int) -> None:
        Counting.made += 1
        self.task, self.total = task, np.zeros(4)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        assert observation.dtype == np.float64
        self.total = self.total + observation
        return self.total


def script(task: int) -> Controller:
    return Counting(task)


SCRIPTED = dataclasses.replace(
    FAMILIES["reach"],
    horizon=400,
    observation_dim=4,
    expert=ScriptedExpert(script, lambda observations, goals: np.column_stack([observations, goals]).astype(float)),
    goal=lambda task: (0.001 * task, -0.01, 0.0),
)


def scripted_actions(share: float, seeds: Sequence[int], tasks: Sequence[int] | None = None) -> np.ndarray:
    """Return (T, B, A) with an observation of one number, 0."""
    policy = ScriptedPolicy(SCRIPTED, share)
    start_all(policy, [EpisodeRequest(*both) for both in zip(tasks or [1] * len(seeds), seeds, strict=True)])
    observations = np.zeros((len(seeds), 1), np.float32)
    return np.stack([policy.act(observations) for _ in range(SCRIPTED.horizon)])


def noiseless(task: int) -> np.ndarray:
    """Return (T, A): what the script asks for, within the bounds."""
    goal = np.array([0, *SCRIPTED.goal(task)], np.float32).astype(float)
    return np.clip(np.arange(1, SCRIPTED.horizon + 1)[:, None] * goal, -1, 1)


def test_script_without_random_actions_is_the_script_and_its_noise() -> None:
    actions = scripted_actions(0.0, [3, 4], [5, 1])
    assert actions.dtype == np.float32
    for column, task in enumerate((5, 1)):
        noise = actions[:, column] - noiseless(task)
        assert noise.std() == pytest.approx(SCRIPT_NOISE, rel=0.1)
        assert noise.mean() == pytest.approx(0, abs=4 * SCRIPT_NOISE / np.sqrt(noise.size))
    assert np.abs(noiseless(5)).max() == 1, "the script never asked for too much"


def test_script_whose_every_action_is_replaced_is_uniformly_random() -> None:
    actions = scripted_actions(1.0, [3, 4], [5, 1])
    assert np.abs(actions).max() <= 1
    assert actions.mean() == pytest.approx(0, abs=0.05)
    assert actions.std() == pytest.approx(1 / np.sqrt(3), abs=0.02)
    assert np.array_equal(actions, scripted_actions(1.0, [3, 4], [2, 3])), "the task shows in random actions"


def test_a_share_of_actions_is_replaced_and_the_others_are_the_scripts() -> None:
    seeds = list(range(10))
    script_alone, half, all_random = (scripted_actions(share, seeds) for share in (0.0, 0.3, 1.0))
    replaced = (half == all_random).all(axis=2)
    assert np.array_equal(half[~replaced], script_alone[~replaced])
    assert replaced.mean() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_scripted_episode_has_noise_of_its_own_whatever_its_batch(share: float) -> None:
    batch = scripted_actions(share, [11, 12, 13], [1, 2, 3])
    assert np.array_equal(batch[:, 1:2], scripted_actions(share, [12], [2]))
    assert np.array_equal(batch, scripted_actions(share, [11, 12, 13], [1, 2, 3]))
    same_task = scripted_actions(share, [11, 12], [1, 1])
    assert not np.array_equal(same_task[:, 0], same_task[:, 1])


def test_beginning_again_forgets_the_episodes_before() -> None:
    policy = ScriptedPolicy(SCRIPTED, 0.5)
    runs, before = [], Counting.made
    for _ in range(2):
        start_all(policy, [EpisodeRequest(1, 7), EpisodeRequest(2, 8)])
        runs.append([policy.act(np.zeros((2, 1), np.float32)) for _ in range(20)])
    assert np.array_equal(*runs)
    assert Counting.made == before + 4, "every episode has a controller of its own"


def test_demonstrators_are_what_a_quality_is_made_with() -> None:
    for name in ("cheetah-vel", "reach"):
        family = FAMILIES[name]
        assert demonstrators(family, "random") == {}
        assert list(demonstrators(family, "mixed")) == ["medium", "expert"]
        for quality in SHIPPED:
            assert list(demonstrators(family, quality)) == [quality]
    assert demonstrators(FAMILIES["reach"], "expert") == {"expert": 0.0}
    made = demonstrators(FAMILIES["cheetah-vel"], "mixed")
    for quality in SHIPPED:
        loaded, shipped = made[quality], shipped_demonstrator(FAMILIES["cheetah-vel"], quality)
        assert isinstance(loaded, ExpertNetwork)
        assert isinstance(shipped, ExpertNetwork)
        assert all(map(np.array_equal, loaded.weights, shipped.weights))


def test_policy_of_a_demonstrator_is_the_one_that_it_is_for() -> None:
    assert isinstance(policy_of(FAMILIES["cheetah-vel"], random_network()), NetworkPolicy)
    scripted = policy_of(FAMILIES["reach"], 0.3)
    assert isinstance(scripted, ScriptedPolicy)
    assert scripted.random_share == 0.3


# --- random actions


@every_family
def test_random_actions_of_an_episode_do_not_depend_on_its_batch(family: TaskFamily) -> None:
    def actions(seeds: list[int]) -> np.ndarray:
        policy = RandomPolicy(family)
        start_all(policy, [EpisodeRequest(family.tasks[0], seed) for seed in seeds])
        observations = np.zeros((len(seeds), family.observation_dim), np.float32)
        return np.stack([policy.act(observations) for _ in range(family.horizon)])

    batch = actions([11, 12, 13])
    assert np.array_equal(batch[:, 1:2], actions([12]))
    assert np.array_equal(batch, actions([11, 12, 13]))
    assert not np.array_equal(batch[:, 0], batch[:, 1])
    assert np.abs(batch).max() <= 1
    assert batch.mean() == pytest.approx(0, abs=0.05)
    assert batch.std() == pytest.approx(1 / np.sqrt(3), abs=0.05)
