"""Classifier-free guidance: which prompts training shows without their condition, and what it learns from them.

Axes: B rows.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.tasks import get_family
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import FlatParameters
from promptdiffuser.training.model_folders import load_diffuser
from promptdiffuser.training.trainings import DiffuserTraining, make_resident
from tests.training.workers import shares_of_one_and_of_two_workers

CPU, FAMILY = torch.device("cpu"), get_family("cheetah-vel")


def with_guidance(training: DiffuserTraining, dropout: float, weight: float = 1.0, **options: str) -> DiffuserTraining:
    denoiser = replace(training.denoiser, condition_dropout=dropout, condition_weight=weight, **options)
    return replace(training, denoiser=denoiser)


def learning(training: DiffuserTraining, episodes: Episodes) -> DiffuserLearning:
    return training.learning_task(*make_resident(training, episodes, CPU), CPU)


@pytest.mark.parametrize("architecture", ["mlp", "transformer"])
def test_shares_of_two_workers_sum_to_that_of_one(
    diffuser_training: DiffuserTraining, episodes: Episodes, architecture: str
) -> None:
    """Which rows are hidden is drawn for the global batch, so it does not depend on who holds them."""
    training = with_guidance(diffuser_training, 0.5, 1.5, architecture=architecture)
    one, first, second = shares_of_one_and_of_two_workers(training, episodes)
    torch.testing.assert_close(first.gradients_GP + second.gradients_GP, one.gradients_GP)


def test_dropout_hides_its_share_of_rows_at_an_address_of_its_own(
    diffuser_training: DiffuserTraining, episodes: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(dropout: float) -> tuple[torch.Tensor, ...]:
        task = learning(replace(with_guidance(diffuser_training, dropout), batch_size=4_000), episodes)
        seen, loss_of = [], task.diffuser.denoising_loss
        monkeypatch.setattr(task.diffuser, "denoising_loss", lambda *args: seen.append(args[2:]) or loss_of(*args))
        task.local_gradients(FlatParameters(task.model), 0)
        return seen[0]

    (*always, all_B), (*sometimes, shown_B) = drawn(0.0), drawn(0.25)
    assert all_B.all()
    assert float(shown_B.float().mean()) == pytest.approx(0.75, abs=0.02)
    assert all(torch.equal(*pair) for pair in zip(always, sometimes, strict=True))


def test_what_stands_for_no_condition_is_learned_and_saved(
    diffuser_training: DiffuserTraining, episodes: Episodes, tmp_path: Path
) -> None:
    """It learns from the hidden rows of the denoising loss, and where generation is guided from L_DT as well."""
    training = with_guidance(diffuser_training, 0.5, 2.0, null_condition="learned")
    task = learning(training, episodes)
    task.model.absent_C.data.normal_(generator=torch.Generator().manual_seed(0))
    prompts, noise_BX = task.pool.prompts, torch.randn(12, 54, generator=torch.Generator().manual_seed(0))
    shown_B, step_B = torch.arange(12) % 2 > 0, torch.arange(12) % 3
    losses_B = task.diffuser.denoising_loss(prompts, task.pool.transitions, step_B, noise_BX, shown_B)
    x_BX = task.diffuser.diffusion.noised(task.diffuser.space.encode(prompts), step_B, noise_BX)
    predicted_BX = task.model(x_BX, step_B, task.model.absent_C.expand(12, -1))
    torch.testing.assert_close(losses_B[~shown_B], (predicted_BX - noise_BX).square().mean(1)[~shown_B])
    flat = FlatParameters(task.model)
    for gradient in task.local_gradients(flat, 0).gradients_GP:
        assert (flat.views(gradient)["absent_C"] != 0).all()
    training.save(tmp_path / "model", task, dict(task.model.named_parameters()))
    assert torch.equal(load_diffuser(tmp_path / "model", FAMILY, CPU).denoiser.absent_C, task.model.absent_C)
