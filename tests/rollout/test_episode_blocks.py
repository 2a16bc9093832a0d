"""Blocks of episodes: their content is fixed by what they name."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.parts import MAX_STEPS, describe_part, episodes_per_part, part_path, read_part
from promptdiffuser.data.storage import Storage
from promptdiffuser.rollout.blocks import (
    EPISODES_PER_BLOCK,
    LEARNED_LOCKSTEP,
    SCRIPTED_LOCKSTEP,
    BlockOfMany,
    CollectBlock,
    collect_blocks,
    evaluation_blocks,
    lockstep_of,
)
from promptdiffuser.rollout.policies import AdaptedPolicies, AdaptedPolicy, PromptedPolicy
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import (
    Demonstrator,
    Quality,
    RandomPolicy,
    demonstrators,
    policy_of,
)
from promptdiffuser.tasks.family import ScriptedExpert, TaskFamily
from tests.data.synthetic import assert_equal
from tests.rollout.synthetic_policies import backbone_of, prompted, tiny_backbone, tiny_pool

FULL_FAMILY = FAMILIES["cheetah-vel"]
FAMILY = dataclasses.replace(FULL_FAMILY, horizon=30)
PROTOCOL = ProtocolConfig(prompts=3, episodes_per_prompt=2)
NOWHERE = Storage.at("/nowhere")
"""For blocks whose episodes are run but not written."""


@pytest.fixture(scope="module")
def policies() -> AdaptedPolicies:
    pool, normaliser = tiny_pool(FAMILY, [1, 2, 3])
    other, _ = tiny_pool(FAMILY, [4, 5, 6], seed=1)
    prompts = {"prompt-dt": {7: pool.prompts, 2: pool.prompts}, "other-task-prompt": {7: other.prompts}}
    return prompted(tiny_backbone(FAMILY), normaliser, prompts)


def evaluate(
    policies: AdaptedPolicies, method: str = "prompt-dt", task: int = 7, protocol: ProtocolConfig = PROTOCOL
) -> pd.DataFrame:
    blocks = evaluation_blocks(protocol.requests(FAMILY, [method], [task]), protocol, policies)
    return pd.concat([block.run(EpisodeStepper(FAMILY), policies) for block in blocks], ignore_index=True)


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
    assert set(frame.target_return) == {FAMILY.target_return}
    assert set(frame.length) == {FAMILY.horizon}
    assert frame.seed.is_unique
    assert frame.success.dtype == bool
    assert not frame.success.any()  # cheetah-vel does not say what success is
    assert not frame.diverged.any()


def test_each_row_is_the_episode_of_its_prompt_and_seed(policies: AdaptedPolicies) -> None:
    rows = evaluate(policies).to_dict("records")
    for request, row in zip(PROTOCOL.requests(FAMILY, ["prompt-dt"], [7]), rows, strict=True):
        assert (row["prompt"], row["episode"], row["seed"]) == (request.prompt, request.episode, request.seed)
        alone = EpisodeStepper(FAMILY).run([request], PromptedPolicy(FAMILY, policies, backbone_of(policies)))
        assert row["return"] == pytest.approx(float(alone.returns[0]), abs=0.05)


def test_frames_say_which_prompts_are_copies_and_which_starts_are_equal() -> None:
    """Six prompts made of three in turn; where a family starts every episode alike, all starts are one."""
    pool, normaliser = tiny_pool(FAMILY, [1, 2, 3])
    policies = prompted(tiny_backbone(FAMILY), normaliser, {"prompt-dt": {7: pool.in_turn(6)}})
    protocol = dataclasses.replace(PROTOCOL, prompts=6, episodes_per_prompt=1)
    frame = evaluate(policies, protocol=protocol)
    assert frame.prompt_source.tolist() == [0, 1, 2, 0, 1, 2]
    assert frame.start.tolist() == frame.seed.tolist()
    still = dataclasses.replace(FAMILY, random_start=False)
    blocks = evaluation_blocks(protocol.requests(FAMILY, ["prompt-dt"], [7]), protocol, policies)
    assert set(blocks[0].run(EpisodeStepper(still), policies).start) == {0}


def test_methods_and_targets_meet_the_same_initial_states(policies: AdaptedPolicies) -> None:
    grid = dataclasses.replace(PROTOCOL, target_returns=(0.0, -50.0))
    frame = evaluate(policies, protocol=grid)
    assert frame.target_return.tolist() == [0.0] * 6 + [-50.0] * 6
    for of_target in (frame[:6], frame[6:], evaluate(policies, "other-task-prompt")):
        assert of_target.seed.tolist() == evaluate(policies).seed.tolist()
    assert not np.allclose(frame[:6]["return"], frame[6:]["return"]), "the target changes nothing"
    assert not np.allclose(evaluate(policies)["return"], evaluate(policies, "other-task-prompt")["return"])


def test_tasks_and_seeds_of_the_protocol_meet_different_initial_states(policies: AdaptedPolicies) -> None:
    seeds = [set(frame.seed) for frame in (evaluate(policies), evaluate(policies, task=2))]
    seeds.append(set(evaluate(policies, protocol=dataclasses.replace(PROTOCOL, seed=1)).seed))
    assert len(set.union(*seeds)) == 18


def test_a_redrawn_prompt_serves_one_episode() -> None:
    redrawn = dataclasses.replace(PROTOCOL, prompt_use="redrawn")
    assert (PROTOCOL.num_prompts, redrawn.num_prompts) == (3, 6)
    requests, fixed = (p.requests(FAMILY, ["m"], [7]) for p in (redrawn, PROTOCOL))
    assert [request.prompt for request in requests] == list(range(6))
    assert [request.seed for request in requests] == [request.seed for request in fixed]


def test_a_shorter_horizon_cuts_the_episodes(policies: AdaptedPolicies) -> None:
    frame = evaluate(policies, protocol=dataclasses.replace(PROTOCOL, horizon=12))
    assert set(frame.length) == {12}


def test_blocks_hold_every_episode_once_and_mix_tasks_but_neither_methods_nor_backbones(
    policies: AdaptedPolicies,
) -> None:
    protocol = ProtocolConfig(prompts=3, episodes_per_prompt=11)
    prompts = policies.policies["prompt-dt"][7].prompts
    tuned = {task: AdaptedPolicy(tiny_backbone(FAMILY, seed=task), prompts) for task in (7, 2)}
    policies = dataclasses.replace(policies, policies=policies.policies | {"tuned": tuned})
    requests = [
        *protocol.requests(FAMILY, ["prompt-dt", "tuned"], [7, 2]),
        *protocol.requests(FAMILY, ["other-task-prompt"], [7]),
    ]
    blocks = evaluation_blocks(requests, protocol, policies)
    assert [(block.method, len(block.requests)) for block in blocks] == [
        ("prompt-dt", EPISODES_PER_BLOCK),
        ("prompt-dt", 2),
        ("tuned", 33),
        ("tuned", 33),
        ("other-task-prompt", 33),
    ]
    assert [request for block in blocks for request in block.requests] == requests
    assert len({block.name for block in blocks}) == len(blocks)
    frame = blocks[0].run(EpisodeStepper(FAMILY), policies)
    assert frame.task.value_counts().to_dict() == {7: 33, 2: 31}
    # Blocks of tuned backbones play with their own.
    alone = prompted(tuned[2].backbone, policies.normaliser, {"tuned": {2: prompts}})
    own, as_alone, other = (
        blocks[number].run(EpisodeStepper(FAMILY), used)["return"]
        for number, used in ((3, policies), (3, alone), (2, policies))
    )
    pd.testing.assert_series_equal(own, as_alone)
    assert not np.allclose(own, other)


def test_a_block_of_many_evaluations_is_played_by_its_own_policies(policies: AdaptedPolicies) -> None:
    blocks = [
        evaluation_blocks(PROTOCOL.requests(FAMILY, [method], [7]), PROTOCOL, policies)[0]
        for method in ("prompt-dt", "other-task-prompt")
    ]
    others = dataclasses.replace(policies, policies={"prompt-dt": policies.policies["other-task-prompt"]})
    stepper = EpisodeStepper(FAMILY)
    first, second = (BlockOfMany(place, blocks[0]).run(stepper, [policies, others])["return"] for place in range(2))
    pd.testing.assert_series_equal(first, blocks[0].run(stepper, policies)["return"])
    pd.testing.assert_series_equal(second, blocks[1].run(stepper, policies)["return"])
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("precision", "fp8", "evaluation.precision must be"),
        ("prompt_use", "sometimes", "evaluation.prompt_use must be fixed or redrawn"),
        ("horizon", -1, "evaluation.horizon must be 0"),
        ("target_returns", (1.0, 1.0), "evaluation.target_returns must name each return once"),
    ],
)
def test_protocol_refuses_what_it_cannot_do(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProtocolConfig(**{field: value})


def block_of(quality: Quality, episodes: int = 3, first: int = 0, task: int = 26, seed: int = 0) -> CollectBlock:
    return CollectBlock(NOWHERE, task, quality, 0, first, episodes, seed)


def collect(quality: Quality, episodes: int = 3, first: int = 0, task: int = 26, seed: int = 0) -> Episodes:
    block = block_of(quality, episodes, first, task, seed)
    return block.collect(EpisodeStepper(FULL_FAMILY), demonstrators(FULL_FAMILY, quality))


@pytest.mark.parametrize("quality", ["expert", "medium", "random", "mixed"])
def test_collecting_twice_gives_equal_episodes(quality: Quality) -> None:
    first = collect(quality)
    assert_equal(first, collect(quality))
    assert first.tasks.tolist() == [26] * 3
    assert len(set(first.seeds.tolist())) == 3
    assert not set(first.seeds) & set(collect(quality, seed=1).seeds)
    assert not set(first.seeds) & set(collect(quality, task=2).seeds)


def test_expert_collects_higher_returns_than_medium_and_far_higher_ones_than_random_actions() -> None:
    expert, medium, chance = (collect(quality).returns for quality in ("expert", "medium", "random"))
    assert expert.min() > medium.max() > chance.max()
    assert expert.min() > chance.max() + 100


@pytest.mark.parametrize("quality", ["random", "expert", "mixed"])
def test_a_block_holds_the_same_numbers_of_a_larger_collection(quality: Quality) -> None:
    whole = collect(quality, 12)
    for first, count in ((0, 2), (6, 3), (11, 1)):
        block = collect(quality, count, first)
        of_whole = whole.select(slice(first, first + count))
        assert np.array_equal(block.seeds, of_whole.seeds)
        assert np.array_equal(block.observations[:, 0], of_whole.observations[:, 0])
        if quality == "random":
            assert_equal(block, of_whole)
        else:
            # A network's sums may be rounded otherwise in a batch of another size, and the Cheetah remembers.
            np.testing.assert_allclose(block.actions[:, :5], of_whole.actions[:, :5], atol=1e-4)


def test_seven_episodes_of_ten_are_the_medium_policys_and_then_three_the_experts() -> None:
    makers = demonstrators(FULL_FAMILY, "mixed")
    mixed = collect("mixed", 20)
    medium = [number for number in range(20) if number % 10 < 7]
    for quality, numbers in (("medium", medium), ("expert", [n for n in range(20) if n not in medium])):
        seeds = mixed.seeds[numbers].tolist()
        policy = policy_of(FULL_FAMILY, makers[quality])
        alone = EpisodeStepper(FULL_FAMILY).run([EpisodeRequest(26, seed) for seed in seeds], policy)
        assert_equal(mixed.select(np.array(numbers)), alone)
    assert len(set(mixed.seeds)) == 20


def test_qualities_meet_initial_states_of_their_own() -> None:
    seeds = [set(collect(quality).seeds) for quality in ("expert", "medium", "random", "mixed")]
    assert len(set.union(*seeds)) == sum(map(len, seeds))


SCRIPTED = dataclasses.replace(FAMILIES["reach"], horizon=12)


@pytest.mark.parametrize("quality", ["expert", "mixed", "random"])
def test_scripted_episodes_do_not_depend_on_how_they_are_cut(quality: Quality) -> None:
    assert isinstance(SCRIPTED.expert, ScriptedExpert)
    makers: dict[Quality, Demonstrator] = {"expert": 0.0, "medium": 0.5}
    stepper = EpisodeStepper(SCRIPTED)
    whole = block_of(quality, 10).collect(stepper, makers)
    pieces = [block_of(quality, count, first).collect(stepper, makers) for first, count in ((0, 3), (3, 6), (9, 1))]
    assert_equal(Episodes.concatenate(pieces), whole)
    if quality == "mixed":
        for number, seed in enumerate(whole.seeds.tolist()):
            policy = policy_of(SCRIPTED, 0.5 if number < 7 else 0.0)
            alone = EpisodeStepper(SCRIPTED).run([EpisodeRequest(26, seed)], policy)
            assert_equal(whole.select(slice(number, number + 1)), alone)


def test_networks_run_in_larger_batches_than_scripts() -> None:
    assert lockstep_of(FULL_FAMILY) == LEARNED_LOCKSTEP > SCRIPTED_LOCKSTEP == lockstep_of(SCRIPTED)


@pytest.mark.parametrize("quality", ["expert", "random"])
def test_a_block_writes_its_episodes_and_returns_what_the_file_holds(quality: Quality, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "dataset")
    makers = demonstrators(FULL_FAMILY, quality)
    block = dataclasses.replace(block_of(quality, 2, first=5), storage=storage, part=3)
    record = block.run(EpisodeStepper(FULL_FAMILY), makers)
    assert [path.name for path in (tmp_path / "dataset").rglob("*.parquet")] == ["part-00003.parquet"]
    assert block.name == part_path(26, quality, 3)
    written = read_part(storage, block.name, 26)
    assert_equal(written, block.collect(EpisodeStepper(FULL_FAMILY), makers))
    assert record == describe_part(storage, block.name, 26, quality, written)
    assert (record.task, record.quality, record.episodes, record.steps) == (26, quality, 2, 2 * FULL_FAMILY.horizon)
    assert record.return_mean == pytest.approx(written.returns.mean())
    again = dataclasses.replace(block, storage=Storage.at(tmp_path / "again"))
    assert again.run(EpisodeStepper(FULL_FAMILY), makers) == record, "the same episodes gave another file"


@pytest.mark.parametrize("family", [FULL_FAMILY, FAMILIES["ml10"]], ids=lambda family: family.name)
@pytest.mark.parametrize("episodes", [1, 99, 100, 101, 999])
def test_collections_are_cut_into_files_of_bounded_size(family: TaskFamily, episodes: int) -> None:
    blocks = collect_blocks(NOWHERE, family, 7, "medium", episodes, seed=5)
    assert [block.part for block in blocks] == list(range(len(blocks)))
    numbers = [block.first_episode + row for block in blocks for row in range(block.episodes)]
    assert numbers == list(range(episodes))
    assert all(1 <= block.episodes * family.horizon <= MAX_STEPS for block in blocks)
    assert all(block.episodes == episodes_per_part(family) for block in blocks[:-1])
    assert {(block.task, block.quality, block.seed) for block in blocks} == {(7, "medium", 5)}
    assert len({block.name for block in blocks}) == len(blocks)


def test_random_episodes_are_the_random_policys() -> None:
    episodes = collect("random", 2)
    seeds = episodes.seeds.tolist()
    requests = [EpisodeRequest(26, seed) for seed in seeds]
    assert_equal(episodes, EpisodeStepper(FULL_FAMILY).run(requests, RandomPolicy(FULL_FAMILY)))
