"""How guidance is weighed over a training, which losses an update follows, and what it does to the update itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.models.denoiser import ARCHITECTURES
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import (
    CombinedGradient,
    Engine,
    FlatParameters,
    LocalGradients,
    OptimisationConfig,
    identity_reduce,
)
from promptdiffuser.training.guidance import WEIGHT_SCHEDULES, GuidanceConfig
from promptdiffuser.training.projection import PROJECTIONS, complement
from promptdiffuser.training.trainings import DiffuserTraining, make_resident
from tests.training.workers import shares_of_one_and_of_two_workers

CPU = torch.device("cpu")
DOWNSTREAM = {"losses": "downstream", "projection": "sum", "match_norms": False}


def learning(training: DiffuserTraining, episodes: Episodes, **guidance: Any) -> DiffuserLearning:
    training = replace(training, guidance=replace(training.guidance, **guidance))
    return training.learning_task(*make_resident(training, episodes, CPU), CPU)


def engine_of(training: DiffuserTraining, episodes: Episodes, **guidance: Any) -> Engine:
    return Engine(learning(training, episodes, **guidance), training.optimisation, identity_reduce)


@pytest.mark.parametrize("schedule", WEIGHT_SCHEDULES)
def test_the_weight_goes_from_the_initial_to_the_final_one(schedule: str) -> None:
    for initial, final in ((0.0, 5.0), (5.0, 0.0), (1.0, 3.0)):
        config = GuidanceConfig(final, schedule, 0.0 if schedule == "constant" else initial)
        weights = [config.weight_at((step + 1) / 50) for step in range(50)]
        assert weights[-1] == pytest.approx(final)
        assert weights == sorted(weights, reverse=initial > final)
        if schedule == "constant":
            assert set(weights) == {final}
        else:
            assert abs(weights[0] - initial) <= 0.02 * abs(final - initial) + 1e-12
            assert weights[24] == pytest.approx((initial + final) / 2)


def test_guidance_that_fades_out_acts_though_its_last_weight_is_zero() -> None:
    assert GuidanceConfig(0.0, "cosine", 5.0).acts
    assert not GuidanceConfig(0.0).acts


def test_the_weight_is_scheduled_over_the_guided_updates(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    training = replace(diffuser_training, guidance_start=2)
    engine = engine_of(training, episodes, weight=8.0, weight_schedule="linear")
    found = [engine.advance().get("guidance_weight") for _ in range(6)]
    assert found == [None, None, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_projection_trains_every_denoiser(
    diffuser_training: DiffuserTraining, episodes: Episodes, name: str, architecture: str
) -> None:
    training = replace(diffuser_training, denoiser=replace(diffuser_training.denoiser, architecture=architecture))
    for project in ("gradient", "update"):
        engine = engine_of(training, episodes, projection=name, project=project)
        before = engine.parameters.vector.clone()
        metrics = [engine.advance(examine=True) for _ in range(2)][1]
        assert not torch.equal(engine.parameters.vector, before)
        assert all(torch.tensor(value).isfinite() for value in metrics.values()), metrics


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("path", [{}, {"path_steps": 1}, {"path": "one-step"}], ids=["chain", "truncated", "one-step"])
def test_two_workers_follow_the_gradient_of_one(
    diffuser_training: DiffuserTraining, episodes: Episodes, name: str, path: dict[str, Any]
) -> None:
    guidance = replace(diffuser_training.guidance, projection=name, **path)
    training = replace(diffuser_training, guidance=guidance)
    one, first, second = shares_of_one_and_of_two_workers(training, episodes)
    single, together = (
        learning(training, episodes).combine(gradients_GP, 5).gradient
        for gradients_GP in (one.gradients_GP, first.gradients_GP + second.gradients_GP)
    )
    torch.testing.assert_close(together, single, rtol=1e-3, atol=1e-5 * float(single.norm()))


@pytest.mark.parametrize("name", ["conflict", "conflict-tensor"])
@pytest.mark.parametrize("sign", [1, -1], ids=["agreeing", "in conflict"])
def test_a_projected_update_gives_way_in_conflict_alone(
    diffuser_training: DiffuserTraining, episodes: Episodes, name: str, sign: int
) -> None:
    """An update that would raise L_DM is turned aside, one that lowers it is left."""
    task = learning(diffuser_training, episodes, projection=name, project="update")
    size = sum(parameter.numel() for parameter in task.model.parameters())
    gradient_dm = torch.randn(size, generator=torch.Generator().manual_seed(0))
    combined = task.combine(torch.stack([gradient_dm, sign * gradient_dm]), 0)
    assert combined.project is not None
    share = -sign * gradient_dm
    kept = combined.project(share)
    if sign == 1:
        assert torch.equal(kept, share)
    else:
        assert kept.norm() < 1e-5 * share.norm()


def test_downstream_alone_leaves_out_the_denoising_loss(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    task = learning(diffuser_training, episodes, weight=2.0, **DOWNSTREAM)
    gradients_GP = task.local_gradients(FlatParameters(task.model), 0).gradients_GP
    combined = task.combine(gradients_GP, 0)
    assert torch.equal(combined.gradient, 2 * gradients_GP[1])
    other = task.combine(torch.stack([1e3 * torch.randn_like(gradients_GP[0]), gradients_GP[1]]), 0)
    assert torch.equal(other.gradient, combined.gradient)


def test_alternating_losses_take_turns(diffuser_training: DiffuserTraining, episodes: Episodes) -> None:
    training = replace(diffuser_training, guidance_start=1)
    task = learning(training, episodes, losses="alternating", projection="sum", weight=2.0)
    flat = FlatParameters(task.model)
    assert torch.equal(
        task.combine(task.local_gradients(flat, 0).gradients_GP, 0).gradient,
        task.local_gradients(flat, 0).gradients_GP[0],
    )
    for step in range(1, 6):
        gradients_GP = task.local_gradients(flat, step).gradients_GP
        followed = task.combine(gradients_GP, step).gradient
        if step % 2:
            assert torch.equal(followed, gradients_GP[0])
        else:
            scale = 2 * gradients_GP[0].norm() / gradients_GP[1].norm()
            torch.testing.assert_close(followed, scale * gradients_GP[1])


@pytest.mark.parametrize(
    "values",
    [
        {"projection": "none"},
        {"weight": -1.0},
        {"weight_schedule": "square"},
        {"initial_weight": -1.0, "weight_schedule": "linear"},
        {"initial_weight": 1.0},
        {"losses": "both"},
        {"losses": "alternating"},
        {"losses": "alternating", "projection": "sum", "project": "update"},
        {"match_norms": True, "projection": "sum", "losses": "downstream"},
        {"project": "moments"},
        {"path": "two-step"},
        {"path_steps": -1},
        {"path_steps": 1, "path": "one-step"},
        {"energy": 0.0},
        {"energy": 1.5},
        {"memory_decay": 1.0},
        {"batch_size": 0},
        {"precision": "fp8"},
    ],
)
def test_impossible_guidance_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"guidance\.{next(iter(values))}"):
        GuidanceConfig(**values)


class Guided:
    """A task whose two gradients are given, on a model of one weight matrix."""

    address = (0, "guided")

    def __init__(self, combine: Callable[[Tensor], CombinedGradient]) -> None:
        self.model, self.memory, self._combine = nn.Linear(20, 20, bias=False), dict[str, Tensor](), combine
        nn.init.constant_(self.model.weight, 0.1)

    def local_gradients(self, parameters: FlatParameters, step: int) -> LocalGradients:
        return LocalGradients(gradients_at(step), {"loss": torch.zeros(())})

    def combine(self, gradients_GP: Tensor, step: int) -> CombinedGradient:
        return self._combine(gradients_GP)


def gradients_at(step: int) -> Tensor:
    """Return two correlated gradients whose elements differ in size, which AdamW makes alike."""
    generator = torch.Generator().manual_seed(step)
    sizes = torch.logspace(-3, 1, 400)
    first, second = torch.randn(2, 400, generator=generator) * sizes
    return torch.stack([first, second + first])


def projected_gradient(gradients_GP: Tensor) -> CombinedGradient:
    gradient_dm, gradient_dt = gradients_GP
    return CombinedGradient(gradient_dm + complement(gradient_dm, gradient_dt), base=gradient_dm)


def projected_update(gradients_GP: Tensor) -> CombinedGradient:
    gradient_dm, gradient_dt = gradients_GP
    return CombinedGradient(
        gradient_dm + gradient_dt, {}, gradient_dm, lambda guidance: complement(gradient_dm, guidance)
    )


def unguided(gradients_GP: Tensor) -> CombinedGradient:
    return CombinedGradient(gradients_GP[0])


CONFIG = OptimisationConfig(10, 1e-2, "constant", weight_decay=0.1, clip_norm=5.0)


def test_guidances_share_is_the_difference_to_an_update_without_it() -> None:
    """The two engines have equal moments before the third update, which only one of them guides."""

    def guided_at_last(gradients_GP: Tensor) -> CombinedGradient:
        return projected_gradient(gradients_GP) if guided.step == 2 else unguided(gradients_GP)

    guided, plain = (
        Engine(Guided(guided_at_last), CONFIG, identity_reduce),
        Engine(Guided(unguided), CONFIG, identity_reduce),
    )
    for engine in (guided, plain):
        engine.advance()
        engine.advance()
    before = plain.parameters.vector.clone()
    metrics = guided.advance(examine=True)
    plain.advance()
    gradient, whole = gradients_at(2)[0], guided.parameters.vector - before
    share = guided.parameters.vector - plain.parameters.vector
    assert metrics["guidance_update_norm"] == pytest.approx(float(share.norm()), rel=1e-4)
    assert metrics["guidance_update_change"] == pytest.approx(float(share.dot(gradient)), rel=1e-4)
    assert metrics["update_norm"] == pytest.approx(float(whole.norm()), rel=1e-4)
    assert metrics["update_change"] == pytest.approx(float(whole.dot(gradient)), rel=1e-4)
    cosine = torch.cosine_similarity(whole, gradient, dim=0)
    assert metrics["update_cosine"] == pytest.approx(float(cosine), rel=1e-4)


def test_the_optimizer_breaks_the_promise_of_a_projected_gradient_and_a_projected_update_keeps_it() -> None:
    def change(combine: Callable[[Tensor], CombinedGradient]) -> float:
        engine = Engine(Guided(combine), CONFIG, identity_reduce)
        metrics = [engine.advance(examine=True) for _ in range(5)]
        return max(abs(entry["guidance_update_change"] / entry["update_change"]) for entry in metrics)

    assert change(projected_gradient) > 0.05
    assert change(projected_update) < 1e-4


def test_a_projected_update_is_the_base_update_and_what_is_kept_of_guidance() -> None:
    summed = lambda gradients_GP: CombinedGradient(gradients_GP.sum(0), base=gradients_GP[0])  # noqa: E731
    engines = [Engine(Guided(combine), CONFIG, identity_reduce) for combine in (unguided, summed, projected_update)]
    metrics = [engine.advance(examine=True) for engine in engines][-1]
    plain, whole, projected = (engine.parameters.vector for engine in engines)
    kept = complement(gradients_at(0)[0], whole - plain)
    torch.testing.assert_close(projected, plain + kept)
    share = 1 - float(kept.norm() / (whole - plain).norm())
    assert metrics["update_share_removed"] == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("combine", [unguided, projected_gradient, projected_update])
def test_looking_at_an_update_does_not_change_it(combine: Callable[[Tensor], CombinedGradient]) -> None:
    seen, unseen = Engine(Guided(combine), CONFIG, identity_reduce), Engine(Guided(combine), CONFIG, identity_reduce)
    for _ in range(4):
        metrics, fewer = seen.advance(examine=True), unseen.advance()
        assert fewer.items() <= metrics.items()
        assert {"update_norm", "update_change", "update_cosine"} <= metrics.keys()
        assert ("guidance_update_change" in metrics) == (combine is not unguided)
    for name, value in seen.state().items():
        assert torch.equal(value, unseen.state()[name]), name


def test_without_a_gradient_the_update_has_no_direction() -> None:
    engine = Engine(
        Guided(lambda gradients_GP: CombinedGradient(torch.zeros(400))),
        replace(CONFIG, weight_decay=0.0),
        identity_reduce,
    )
    assert engine.advance(examine=True)["update_cosine"] == 0
