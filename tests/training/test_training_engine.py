"""The engine: flat parameters, the update against a plain PyTorch loop, learning rates, refusals."""

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptdiffuser.training.engine import (
    CombinedGradient,
    Engine,
    FlatParameters,
    LocalGradients,
    NonFiniteGradientError,
    OptimisationConfig,
    identity_reduce,
)


def new_network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def batch(step: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
    return inputs, inputs.sum(dim=1, keepdim=True).sin()


class Regression:
    """A learning task whose data is random and whose gradient can be made infinite at one step."""

    address = (0, "regression")
    memory: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, infinite_at: int | None = None) -> None:
        self.model, self.infinite_at = new_network(), infinite_at

    def local_gradients(self, parameters: FlatParameters, step: int) -> LocalGradients:
        inputs, targets = batch(step)
        loss = F.mse_loss(self.model(inputs), targets)
        loss = loss * (torch.inf if step == self.infinite_at else 1)
        return LocalGradients(parameters.gradient(loss)[None], {"loss": loss})

    def combine(self, gradients_GP: Tensor, step: int) -> CombinedGradient:
        return CombinedGradient(gradients_GP[0])


def test_flat_parameters_share_memory_with_the_model() -> None:
    model = new_network()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    flat = FlatParameters(model)
    assert flat.vector.numel() == 3 * 8 + 8 + 8 + 1
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, values[name])
        assert torch.equal(flat.named_views[name], values[name])
    flat.vector.zero_()
    assert all((parameter == 0).all() for parameter in model.parameters())
    model.load_state_dict(values)
    assert torch.equal(flat.vector, torch.cat([value.flatten() for value in values.values()]))


def test_flat_gradient_is_autograds_and_zero_for_unused_and_absent_for_frozen_parameters() -> None:
    plain, model = new_network(), nn.ModuleDict({"used": new_network(), "unused": nn.Linear(2, 2)})
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    inputs, targets = batch(0)
    F.mse_loss(plain(inputs), targets).backward()
    flat = FlatParameters(model)
    gradient = flat.views(flat.gradient(F.mse_loss(model["used"](inputs), targets)))
    assert gradient.keys() == {f"used.{name}" for name, _ in plain.named_parameters()} | {
        "unused.weight",
        "unused.bias",
    }
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradient[f"used.{name}"], parameter.grad)
    assert gradient["unused.weight"].abs().sum() == 0


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_engine_updates_as_a_plain_pytorch_loop(clip_norm: float) -> None:
    config = OptimisationConfig(30, 1e-2, "warmup", warmup_steps=10, weight_decay=0.1, clip_norm=clip_norm)
    task, steps_clipped = Regression(), 0
    engine = Engine(task, config, identity_reduce)
    plain = new_network()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    for step in range(config.steps):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        loss = F.mse_loss(plain(inputs), targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip_norm or torch.inf)
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        metrics = engine.advance()
        expected = {"loss": loss.item(), "gradient_norm": float(norm), "learning_rate": learning_rate}
        assert metrics == pytest.approx(expected, rel=1e-3)
        steps_clipped += float(norm) > clip_norm > 0
    assert (steps_clipped > 10) == (clip_norm > 0)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(engine.trained_tensors()[name], parameter.detach(), rtol=1e-3, atol=1e-5)


def test_workers_gradients_are_summed_before_the_update() -> None:
    """Ten equal workers, each with a tenth of the loss, are one worker."""

    class Tenth(Regression):
        def local_gradients(self, parameters: FlatParameters, step: int) -> LocalGradients:
            whole = super().local_gradients(parameters, step)
            return LocalGradients(whole.gradients_GP / 10, {name: value / 10 for name, value in whole.scalars.items()})

    config = OptimisationConfig(5, 1e-2, "constant")
    one, ten = Engine(Regression(), config, identity_reduce), Engine(Tenth(), config, lambda vector: vector * 10)
    for _ in range(config.steps):
        assert one.advance() == pytest.approx(ten.advance(), rel=1e-4)
    torch.testing.assert_close(one.parameters.vector, ten.parameters.vector)


def test_trained_tensors_are_the_last_weights_without_averaging() -> None:
    engine = Engine(Regression(), OptimisationConfig(3, 1e-2, "constant"), identity_reduce)
    for _ in range(3):
        engine.advance()
    for name, value in engine.task.model.state_dict().items():
        assert torch.equal(engine.trained_tensors()[name], value)


def test_average_follows_its_recursion_and_forgets_the_initial_weights() -> None:
    engine = Engine(Regression(), OptimisationConfig(40, 1e-2, "constant", average_decay=0.7), identity_reduce)
    expected = engine.parameters.vector.clone()
    for step in range(40):
        engine.advance()
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * engine.parameters.vector
    trained = torch.cat([value.flatten() for value in engine.trained_tensors().values()])
    torch.testing.assert_close(trained, expected)
    assert not torch.equal(trained, engine.parameters.vector)


def test_a_non_finite_gradient_stops_before_the_weights_change() -> None:
    engine = Engine(
        Regression(infinite_at=2), OptimisationConfig(5, 1e-2, "constant", average_decay=0.5), identity_reduce
    )
    engine.advance()
    engine.advance()
    before = {name: value.clone() for name, value in engine.state().items()}
    with pytest.raises(NonFiniteGradientError, match=r"step 2 is not finite.*loss"):
        engine.advance()
    assert engine.step == 2
    for name, value in engine.state().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("steps", [1, 10, 100, 1000])
def test_one_cycle_rises_to_the_peak_and_falls_to_almost_zero(steps: int) -> None:
    config = OptimisationConfig(steps, 0.5, "one-cycle")
    rates = [config.learning_rate_at(step) for step in range(steps)]
    peak = max(1, steps // 10)
    assert max(rates) == rates[peak - 1] == 0.5
    assert rates[0] == 0.5 / peak
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] <= (0.5 if steps == 1 else 0.5 * 10 / steps)


def test_warmup_rises_to_the_peak_and_stays() -> None:
    config = OptimisationConfig(100, 0.5, "warmup", warmup_steps=20)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[:20] == pytest.approx([0.5 * (step + 1) / 20 for step in range(20)])
    assert set(rates[19:]) == {0.5}


def test_warmup_of_no_steps_starts_at_the_peak() -> None:
    assert OptimisationConfig(100, 0.5, "warmup", warmup_steps=0).learning_rate_at(0) == 0.5


def test_constant_is_constant() -> None:
    config = OptimisationConfig(100, 0.5, "constant")
    assert {config.learning_rate_at(step) for step in range(100)} == {0.5}


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"checkpoint_every": 0},
        {"learning_rate": 0.0},
        {"average_decay": 1.0},
        {"schedule": "cosine"},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"clip_norm": -1.0},
    ],
)
def test_impossible_optimisation_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        OptimisationConfig(**values)
