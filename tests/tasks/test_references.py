"""Reference returns of policies that ignore what they observe, the file that holds them, and target returns."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import reference_scores
from promptdiffuser.rng import seed_at
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import ConstantPolicy, policy_of, shipped_demonstrator
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.tasks.references import Reference, read_references, reference_returns, write_references
from tests.rollout.synthetic_policies import start_all
from tests.tasks.test_experts import references_document

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
ZERO_ACTION = {
    "cheetah-dir": 0.02,
    "cheetah-vel": 0.29,
    "ant-dir": 0.31,
    "ant-dir-ood": 0.31,
    "walker-params": 0.23,
    "hopper-params": 0.12,
} | dict.fromkeys(("pick-place", "pick-place-500", "reach", "reach-500", "ml10", "ml45"), 0.01)
"""Normalised score of zero actions on the test tasks."""
FAR = 0.25
"""A published target return stays within this share of the way from random actions to the best expert return."""


@every_family
def test_every_task_has_the_returns_of_policies_of_one_action(family: TaskFamily) -> None:
    references = reference_returns(family)
    assert all(np.isfinite(dataclasses.astuple(references[task])).all() for task in family.tasks)
    mean_action = references_document(family)["mean_action"]
    assert len(mean_action) == family.action_dim
    assert np.abs(mean_action).max() < 1
    assert all(score["normalised"] < 1 for policy, score in reference_scores(family).items() if policy != "expert")


@pytest.mark.parametrize(("name", "score"), ZERO_ACTION.items())
def test_zero_actions_score_what_standing_still_gets(name: str, score: float) -> None:
    assert reference_scores(FAMILIES[name])["zero-action"]["normalised"] == pytest.approx(score, abs=0.0125)


@pytest.mark.parametrize("name", ["cheetah-vel", "ant-dir-ood", "hopper-params", "walker-params", "reach"])
def test_live_returns_of_one_action_are_the_references(name: str) -> None:
    """Nothing is random in these policies, so the episodes of the file give its returns."""
    family = FAMILIES[name]
    task, document = family.test_tasks[0], references_document(family)
    episodes = document["episodes_per_task"] if family.random_start else 1
    requests = [
        EpisodeRequest(task, seed_at(document["seed"], "final", task, index) % 2**31) for index in range(episodes)
    ]
    reference = reference_returns(family)[task]
    for action, recorded in (
        ((0.0,) * family.action_dim, reference.zero_return),
        (tuple(document["mean_action"]), reference.mean_action_return),
    ):
        measured = EpisodeStepper(family).run(requests, policy_of(family, ConstantPolicy(action))).returns.mean()
        # A last bit grows in contacts, and another CPU may differ in it.
        assert measured == pytest.approx(recorded, abs=0.02 * (reference.expert_return - reference.random_return))


@pytest.mark.parametrize("name", ["cheetah-vel", "walker-params"])
def test_the_mean_action_is_that_of_expert_episodes_of_the_training_tasks(name: str) -> None:
    family = FAMILIES[name]
    document = references_document(family)
    requests = [
        EpisodeRequest(task, seed_at(document["seed"], "mean-action", task, 0) % 2**31) for task in family.train_tasks
    ]
    episodes = EpisodeStepper(family).run(requests, policy_of(family, shipped_demonstrator(family, "expert")))
    actions = np.concatenate([episodes.actions[i, :length] for i, length in enumerate(episodes.lengths)])
    np.testing.assert_allclose(actions.mean(axis=0), document["mean_action"], atol=0.02)
    assert document["mean_action_of"] == "every step of one expert episode of every measured training task"


def test_a_policy_of_one_action_takes_it_in_every_row() -> None:
    policy = ConstantPolicy((0.5, -1.0))
    start_all(policy, [EpisodeRequest(0, 1), EpisodeRequest(3, 2)])
    actions = policy.act(np.zeros((2, 7), np.float32))
    assert actions.dtype == np.float32
    assert actions.tolist() == [[0.5, -1.0]] * 2


# --- the file


def test_references_are_read_by_name_whatever_their_order(tmp_path: Path) -> None:
    references = {3: Reference(1, 2, 3, 4, 0.5), 8: Reference(-1, -2, -3, -4, 1)}
    file = tmp_path / "returns" / "a-family.json"
    write_references(file, {"family": "a-family", "seed": 7}, references)
    assert read_references(file) == references
    document = json.loads(file.read_text())
    assert document["seed"] == 7
    document["columns"].reverse()
    document["tasks"] = {task: row[::-1] for task, row in document["tasks"].items()}
    file.write_text(json.dumps(document))
    assert read_references(file) == references


@pytest.mark.parametrize("columns", [["random_return", "expert_return", "expert_success"], None])
def test_a_file_that_lacks_references_is_named_with_the_command_that_adds_them(
    tmp_path: Path, columns: list[str] | None
) -> None:
    file = tmp_path / "cheetah-vel.json"
    document = {"family": "cheetah-vel", "tasks": {"0": [-100.0, -10.0, 0.0]}}
    file.write_text(json.dumps(document | ({"columns": columns} if columns else {})))
    with pytest.raises(UserError, match=r"cheetah-vel\.json has no .*zero_return; `.* cheetah-vel --references-only`"):
        read_references(file)


# --- target returns


@every_family
def test_a_target_return_is_published_or_the_best_of_the_experts_on_training_tasks(family: TaskFamily) -> None:
    references = [reference_returns(family)[task] for task in family.train_tasks]
    best = max(reference.expert_return for reference in references)
    random = np.mean([reference.random_return for reference in references])
    published = {"ant-dir": 500.0, "ant-dir-ood": 500.0, "hopper-params": 1000.0, "walker-params": 1500.0}
    asked = published.get(family.name, family.target_return)
    if abs(asked - best) > FAR * (best - random):
        assert family.target_return == round(best)
    else:
        assert family.target_return == asked
