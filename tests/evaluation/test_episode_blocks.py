"""Blocks of episodes: their content is fixed by what they name."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.evaluation.blocks import AdaptedPolicies, CollectBlock, EvaluationBlock
from promptdiffuser.evaluation.policies import PromptedPolicy
from promptdiffuser.evaluation.protocol import ProtocolConfig
from promptdiffuser.evaluation.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import ExpertNetwork, shipped_weights
from tests.evaluation.synthetic_policies import tiny_backbone, tiny_pool

FULL_FAMILY = FAMILIES["cheetah-vel"]
FAMILY = dataclasses.replace(FULL_FAMILY, horizon=30)
PROTOCOL = ProtocolConfig(prompts=3, episodes_per_prompt=2, few_shot_episodes=1)


@pytest.fixture(scope="module")
def policies() -> AdaptedPolicies:
    pool, normaliser = tiny_pool(FAMILY, [1, 2, 3])
    other, _ = tiny_pool(FAMILY, [4, 5, 6], seed=1)
    prompts = {"prompt-dt": {7: pool.prompts, 2: pool.prompts}, "other-task-prompt": {7: other.prompts}}
    return AdaptedPolicies(tiny_backbone(FAMILY), normaliser, prompts)


def evaluate(policies: AdaptedPolicies, method: str = "prompt-dt", task: int = 7, seed: int = 0) -> pd.DataFrame:
    return EvaluationBlock(method, task, PROTOCOL, seed).run(EpisodeStepper(FAMILY), policies)


def test_evaluating_twice_gives_equal_frames_apart_from_seconds(policies: AdaptedPolicies) -> None:
    first, again = evaluate(policies), evaluate(policies)
    assert (first.seconds > 0).all()
    pd.testing.assert_frame_equal(
        first.drop(columns="seconds"), again.drop(columns="seconds"), check_exact=True, check_like=False
    )


def test_frame_has_one_row_for_each_prompt_and_episode(policies: AdaptedPolicies) -> None:
    frame = evaluate(policies)
    assert list(zip(frame.prompt, frame.episode, strict=True)) == [(p, e) for p in range(3) for e in range(2)]
    assert set(frame.method) == {"prompt-dt"}
    assert set(frame.task) == {7}
    assert set(frame.length) == {FAMILY.horizon}
    assert frame.seed.is_unique


def test_each_row_is_the_episode_of_its_prompt_and_seed(policies: AdaptedPolicies) -> None:
    for row in evaluate(policies).itertuples():
        prompt = policies.prompts["prompt-dt"][7].select(torch.tensor([row.prompt]))
        policy = PromptedPolicy(FAMILY, policies.backbone, policies.normaliser, prompt)
        alone = EpisodeStepper(FAMILY).run([EpisodeRequest(7, row.seed)], policy)
        assert row[frame_position("return")] == pytest.approx(float(alone.returns[0]), abs=0.05)


def frame_position(column: str) -> int:
    # `return` is a keyword, so named tuples rename it; position 0 is the index.
    columns = ["method", "task", "prompt", "episode", "seed", "return", "length", "seconds"]
    return columns.index(column) + 1


def test_methods_meet_the_same_initial_states(policies: AdaptedPolicies) -> None:
    one, other = evaluate(policies), evaluate(policies, "other-task-prompt")
    assert one.seed.tolist() == other.seed.tolist()
    assert not np.array_equal(one["return"], other["return"])


def test_tasks_and_experiments_meet_different_initial_states(policies: AdaptedPolicies) -> None:
    seeds = set(evaluate(policies).seed)
    assert not seeds & set(evaluate(policies, task=2).seed)
    assert not seeds & set(evaluate(policies, seed=1).seed)


def test_block_names_differ_by_method_and_task() -> None:
    blocks = [EvaluationBlock(m, t, PROTOCOL, 0) for m in ("prompt-dt", "prompt-diffuser") for t in (2, 26)]
    assert len({block.name for block in blocks}) == 4


def collect(quality: str, episodes: int = 3, task: int = 26, seed: int = 0) -> Episodes:
    experts = {"expert": ExpertNetwork.load(shipped_weights(FULL_FAMILY.name, "expert"))}
    return CollectBlock(task, quality, episodes, seed).run(EpisodeStepper(FULL_FAMILY), experts)


@pytest.mark.parametrize("quality", ["expert", "random"])
def test_collecting_twice_gives_equal_episodes(quality: str) -> None:
    first, again = collect(quality), collect(quality)
    for field in dataclasses.fields(Episodes):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name)), field.name
    assert first.tasks.tolist() == [26] * 3
    assert len(set(first.seeds.tolist())) == 3
    assert not set(first.seeds) & set(collect(quality, seed=1).seeds)
    assert not set(first.seeds) & set(collect(quality, task=2).seeds)


def test_expert_collects_far_higher_returns_than_random_actions() -> None:
    assert collect("expert").returns.min() > collect("random").returns.max() + 100


def test_random_episodes_do_not_depend_on_how_many_are_collected() -> None:
    few, many = collect("random", 2), collect("random", 3)
    assert np.array_equal(few.actions, many.actions[:2])
    assert np.array_equal(few.observations, many.observations[:2])
    assert not np.array_equal(many.actions[0], many.actions[1])
