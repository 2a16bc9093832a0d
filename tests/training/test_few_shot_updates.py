"""The number of few-shot updates is chosen on held-out few-shot episodes, without a simulator."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.plans import held_out_plan
from promptdiffuser.training.backbone_objective import squared_action_errors
from promptdiffuser.training.checkpoint import load_checkpoint
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.few_shot import DRAWS, HELD_OUT_LOSS, held_out_loss
from promptdiffuser.training.snapshots import use_best_snapshot
from promptdiffuser.training.trainings import DiffuserTraining, History, make_resident, train

CPU = torch.device("cpu")
HELD_OUT = 1


@pytest.fixture(scope="module")
def few_shot_episodes(episodes: Episodes) -> Episodes:
    """Return the four episodes of one task."""
    return episodes.select(np.arange(4))


@pytest.fixture
def training(diffuser_training: DiffuserTraining) -> DiffuserTraining:
    """Return a training of six updates with a snapshot after every second."""
    optimisation = replace(diffuser_training.optimisation, snapshot_every=2, use="best")
    return replace(diffuser_training, stage="few-shot-3", held_out_episodes=HELD_OUT, optimisation=optimisation)


def learning(training: DiffuserTraining, episodes: Episodes) -> DiffuserLearning:
    return training.learning_task(*make_resident(training, episodes, CPU), CPU)


def run(training: DiffuserTraining, episodes: Episodes, folder: Path, **options: Any) -> DiffuserLearning:
    task = learning(training, episodes)
    train(training, task, folder, **options)
    return task


def scores(folder: Path) -> dict[str, float]:
    records = json.loads((folder / "snapshots" / "scores.json").read_text())
    return {name: record[HELD_OUT_LOSS.score] for name, record in records.items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).tensors["weights"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_updates_never_see_a_held_out_episode(training: DiffuserTraining, few_shot_episodes: Episodes) -> None:
    task = learning(training, few_shot_episodes)
    for planner in (task.downstream_planner, task.denoising_planner):
        plans = [planner.at(step) for step in range(30)]
        for name in ("episodes", "prompt_episodes", "context_episodes"):
            seen = np.unique(np.concatenate([getattr(plan, name).ravel() for plan in plans]))
            assert seen.tolist() == [0, 1, 2], name


def test_held_out_windows_cover_their_episodes_and_take_prompts_from_the_others(
    training: DiffuserTraining, few_shot_episodes: Episodes
) -> None:
    task = learning(training, few_shot_episodes)
    plan, length = held_out_plan(task.downstream_planner, task.pool.index, DRAWS), int(few_shot_episodes.lengths[3])
    assert set(plan.episodes) == {3}
    assert sorted(plan.starts) == sorted([*range(0, length, 4)] * DRAWS)
    assert plan.steps(task.pool.index) == length * DRAWS
    assert set(plan.prompt_episodes) == set(plan.context_episodes.ravel()) == {0, 1, 2}


def test_held_out_loss_is_the_mean_squared_action_error(
    training: DiffuserTraining, few_shot_episodes: Episodes
) -> None:
    task = learning(training, few_shot_episodes)
    plan, errors = held_out_plan(task.downstream_planner, task.pool.index, DRAWS), []
    noise_KWX = task.diffuser.draw_batch_noise(len(plan.episodes), *task.address, "held-out")
    for row in range(len(plan.episodes)):
        one = plan.select(np.array([row]))
        _, history = task.windows.windows(0, one)
        prompts = task.diffuser.generate(
            task.pool.prompts_at(one.prompt_episodes),
            task.pool.contexts_at(one.context_episodes),
            noise_KWX[:, row : row + 1],
        )
        error = squared_action_errors(task.backbone, history.trimmed(), prompts)
        errors.append(error.detach()[0])
    expected = float(torch.cat(errors).mean())
    assert held_out_loss(task, task.model.state_dict()) == pytest.approx(expected, rel=1e-5)
    assert held_out_loss(task, task.model.state_dict()) == held_out_loss(task, task.model.state_dict())


def test_scoring_leaves_the_training_as_it_is(
    training: DiffuserTraining, few_shot_episodes: Episodes, tmp_path: Path
) -> None:
    seldom = replace(training, optimisation=replace(training.optimisation, snapshot_every=6))
    for name, variant in (("often", training), ("once", seldom)):
        run(variant, few_shot_episodes, tmp_path / name)
    last = "snapshots/step-00000006"
    assert equal(weights(tmp_path / "often" / last), weights(tmp_path / "once" / last))
    assert scores(tmp_path / "often").items() >= scores(tmp_path / "once").items()


def test_the_snapshot_with_the_lowest_loss_becomes_the_model(
    training: DiffuserTraining, few_shot_episodes: Episodes, tmp_path: Path
) -> None:
    task = run(training, few_shot_episodes, tmp_path)
    found = scores(tmp_path)
    assert list(found) == ["step-00000002", "step-00000004", "step-00000006"]
    for name, loss in found.items():
        assert loss == held_out_loss(task, weights(tmp_path / "snapshots" / name))
    best = min(found, key=lambda name: found[name])
    assert equal(weights(tmp_path / "model"), weights(tmp_path / "snapshots" / best))
    for name in found:
        made_best = {other: {HELD_OUT_LOSS.score: -1.0 if other == name else loss} for other, loss in found.items()}
        (tmp_path / "snapshots" / "scores.json").write_text(json.dumps(made_best))
        use_best_snapshot(tmp_path, HELD_OUT_LOSS)
        assert equal(weights(tmp_path / "model"), weights(tmp_path / "snapshots" / name))


def test_an_interrupted_training_chooses_the_same_snapshot(
    training: DiffuserTraining, few_shot_episodes: Episodes, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def interrupt(history: History) -> None:
        if history[-1]["step"] == 4:
            raise StoppedError

    run(training, few_shot_episodes, tmp_path / "unbroken")
    with pytest.raises(StoppedError):
        run(training, few_shot_episodes, tmp_path / "broken", on_checkpoint=interrupt)
    run(training, few_shot_episodes, tmp_path / "broken")
    assert scores(tmp_path / "broken") == scores(tmp_path / "unbroken")
    assert equal(weights(tmp_path / "broken" / "model"), weights(tmp_path / "unbroken" / "model"))


def test_without_held_out_episodes_the_last_weights_are_the_model(
    training: DiffuserTraining, few_shot_episodes: Episodes, tmp_path: Path
) -> None:
    optimisation = replace(training.optimisation, snapshot_every=0, use="last")
    task = run(
        replace(training, held_out_episodes=0, optimisation=optimisation, start_from=None), few_shot_episodes, tmp_path
    )
    assert set(np.unique(task.downstream_planner.at(0).episodes)) <= {0, 1, 2, 3}
    assert not (tmp_path / "snapshots").exists()
