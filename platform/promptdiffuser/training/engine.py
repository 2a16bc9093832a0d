"""The one training engine: backbone and diffuser are two learning tasks for it.

A learning task computes *shares*: this worker's part of one or more gradients and of the scalars to log, already
divided by global counts, so that the sum over workers is the global value. The engine sums them, lets the task join its
gradients into one, and makes the update. With one worker the sum is the identity; Ray Train passes an all-reduce.

Parameters, gradients and optimizer moments are single flat vectors: one fused update, one message between workers.
Axes: G gradients of a task, P parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from promptdiffuser.errors import UserError
from promptdiffuser.keys import NOT_DECIDING
from promptdiffuser.training.allocator import keep_freed_memory
from promptdiffuser.training.checkpoint import Checkpoint

SMALLEST = torch.finfo(torch.float32).tiny
"""Least length that another is divided by, so that nothing over nothing is 0."""


@dataclass(frozen=True)
class OptimisationConfig:
    """How long and with which steps a model is trained."""

    steps: int = 50_000
    """Updates."""
    learning_rate: float = 1e-4
    """Peak step size of AdamW."""
    schedule: Literal["one-cycle", "warmup", "constant"] = "warmup"
    """one-cycle: linear up over 10 % of the steps, cosine down to 0. warmup: linear up over `warmup_steps`."""
    warmup_steps: int = 10_000
    """Steps of the warmup schedule until the peak."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    clip_norm: float = 0.25
    """Largest length of the update's gradient; 0 does not clip."""
    average_decay: float = 0.0
    """Decay per step of the moving average of weights that is used after training; 0 keeps the last weights."""
    checkpoint_every: int = field(default=1_000, metadata=NOT_DECIDING)
    """Steps between checkpoints."""
    keep_checkpoints: int = field(default=2, metadata=NOT_DECIDING)
    """Newest checkpoints that are kept; the one before the newest is there for the day the newest is broken."""
    snapshot_every: int = 0
    """Steps between snapshots of the model, which are scored on validation tasks beside the training, or few-shot on
    held-out episodes; 0 takes none."""
    use: Literal["last", "best"] = "last"
    """Model to go on with: that of the last step, or the snapshot with the best score."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name in ("steps", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.snapshot_every < 0:
            raise ValueError(f"snapshot_every must not be negative, got {self.snapshot_every}")
        if self.use not in ("last", "best"):
            raise ValueError(f"use must be last or best, got {self.use!r}")
        if self.use == "best" and not self.snapshot_every:
            raise ValueError("use best needs snapshots to choose from; set snapshot_every")
        if self.schedule not in ("one-cycle", "warmup", "constant"):
            raise ValueError(f"schedule must be one-cycle, warmup or constant, got {self.schedule!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative and must be finite, got {getattr(self, name)}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1), got {self.average_decay}")

    def learning_rate_at(self, step: int) -> float:
        """Return the step size of update `step`, counted from 0; resuming needs no state for it."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "warmup":
            return self.learning_rate * min(1.0, (step + 1) / max(self.warmup_steps, 1))
        rise = max(1, self.steps // 10)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


@dataclass(frozen=True)
class LocalGradients:
    """One worker's additive part of an update."""

    gradients_GP: Tensor
    """The first is of the loss that is trained, the others of losses that guide it."""
    scalars: dict[str, Tensor]


@dataclass(frozen=True)
class CombinedGradient:
    """The one gradient to follow that a task makes of several."""

    gradient: Tensor
    """(P,)"""
    metrics: dict[str, float] = field(default_factory=dict)
    base: Tensor | None = None
    """(P,) the gradient without its guidance; None where nothing guides."""
    project: Callable[[Tensor], Tensor] | None = None
    """What is kept of the guidance's share of the update (P,), for tasks that project that and not the gradient."""


class FlatParameters:
    """A model's trainable parameters as views into one vector."""

    def __init__(self, model: nn.Module) -> None:
        """Move the parameters into one vector; the model keeps working on it."""
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        self.vector = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        self.named_views: dict[str, Tensor] = self.views(self.vector, [name for name, _ in named])
        for parameter, view in zip(self.parameters, self.named_views.values(), strict=True):
            parameter.data = view

    def views(self, vector_P: Tensor, names: list[str] | None = None) -> dict[str, Tensor]:
        """Return a vector's parts, shaped and named like the parameters."""
        parts = vector_P.split([parameter.numel() for parameter in self.parameters])
        names = names or list(self.named_views)
        return {n: part.view_as(p) for n, part, p in zip(names, parts, self.parameters, strict=True)}

    def gradient(self, loss: Tensor, keep_graph: bool = False) -> Tensor:
        """Return the gradient (P,) of a loss; parameters it does not depend on get zeros."""
        gradients = torch.autograd.grad(
            loss, self.parameters, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.flatten() for gradient in gradients])


class LearningTask(Protocol):
    """What the engine trains."""

    address: tuple[int | str, ...]
    """Where this training's randomness lives, see `seeding`."""
    memory: dict[str, Tensor]
    """What `join` remembers from update to update, changed in place; part of every checkpoint."""

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""

    def local_gradients(self, parameters: FlatParameters, step: int) -> LocalGradients:
        """Return this worker's share of the gradients and scalars of update `step`."""

    def combine(self, gradients_GP: Tensor, step: int) -> CombinedGradient:
        """Make one gradient of those of update `step`, summed over the workers; called once an update."""


class NonFiniteGradientError(RuntimeError):
    """The loss or gradient of an update is not finite; the model has not been changed by it."""


class Engine:
    """Trains one learning task, update by update."""

    def __init__(
        self, task: LearningTask, config: OptimisationConfig, sum_over_workers: Callable[[Tensor], Tensor]
    ) -> None:
        """Take the task's model; `sum_over_workers` returns the sum of a vector over all workers."""
        self.task, self.config, self.sum_over_workers = task, config, sum_over_workers
        self.parameters = FlatParameters(task.model)
        self.average = self.parameters.vector.clone()
        self.step = 0
        if self.average.device.type == "cpu":
            keep_freed_memory()
        self._updated = nn.Parameter(self.parameters.vector)
        self._optimizer = self._new_optimizer(self._updated)

    def _new_optimizer(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.AdamW([parameter], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)

    def advance(self, examine: bool = False) -> dict[str, float]:
        """Make one update and return its metrics.

        Args:
            examine: Look at the update itself too, which costs a few passes over the parameters.

        Raises:
            NonFiniteGradientError: Before the update, naming the step, if the gradient is not finite.
        """
        share = self.task.local_gradients(self.parameters, self.step)
        num_gradients, size = share.gradients_GP.shape
        scalars = torch.stack([value.detach().float() for value in share.scalars.values()])
        total = self.sum_over_workers(torch.cat([share.gradients_GP.flatten(), scalars]))
        gradients_GP = total[: num_gradients * size].view(num_gradients, size)
        metrics = dict(zip(share.scalars, total[num_gradients * size :].tolist(), strict=True))

        joined = self.task.combine(gradients_GP, self.step)
        norm = float(joined.gradient.norm())
        if not math.isfinite(norm):
            raise NonFiniteGradientError(
                f"the gradient of step {self.step} is not finite, the weights are still those before it; its batch is "
                f"at address {'/'.join(map(str, (*self.task.address, self.step)))}; metrics {metrics}"
            )
        learning_rate = self.config.learning_rate_at(self.step)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        metrics |= joined.metrics | {"gradient_norm": norm, "learning_rate": learning_rate}
        if examine or joined.project is not None:
            metrics |= self._update_apart(joined, norm, gradients_GP[0])
        else:
            self._follow(joined.gradient, norm, self._updated, self._optimizer)
        self._move_average()
        self.step += 1
        return metrics

    def _follow(self, gradient: Tensor, norm: float, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        if self.config.clip_norm and norm > self.config.clip_norm:
            gradient = gradient * (self.config.clip_norm / norm)
        parameter.grad = gradient
        optimizer.step()

    def _update_apart(self, joined: CombinedGradient, norm: float, trained_gradient: Tensor) -> dict[str, float]:
        """Make the update with its guidance's share told apart, and return what it does to the trained loss.

        That share is the difference between the update and the one that the same optimizer, with the same moments,
        would have made without guidance. It is where a promise about gradients is put to the test: the optimizer
        scales their elements, and what it makes of a projected gradient is projected no more.
        """
        vector = self.parameters.vector
        before, metrics = vector.clone(), {}
        unguided = None if joined.base is None else self._vector_after(joined.base)
        self._follow(joined.gradient, norm, self._updated, self._optimizer)
        if unguided is not None:
            guidance = vector - unguided
            if joined.project is not None:
                whole, guidance = guidance, joined.project(guidance)
                vector.copy_(unguided + guidance)
                metrics["update_share_removed"] = 1 - guidance.norm() / whole.norm().clamp_min(SMALLEST)
            metrics |= {
                "guidance_update_norm": guidance.norm(),
                "guidance_update_change": guidance.dot(trained_gradient),
            }
        update = vector - before
        length, change = update.norm(), update.dot(trained_gradient)
        cosine = change / (length * trained_gradient.norm()).clamp_min(SMALLEST)
        metrics |= {"update_norm": length, "update_change": change, "update_cosine": cosine}
        return {name: float(value) for name, value in metrics.items()}

    def _vector_after(self, gradient: Tensor) -> Tensor:
        """Return the parameters (P,) that another gradient would lead to, and leave everything as it is."""
        parameter = nn.Parameter(self._updated.detach().clone())
        optimizer = self._new_optimizer(parameter)
        optimizer.param_groups[0]["lr"] = self._optimizer.param_groups[0]["lr"]
        moments = self._optimizer.state[self._updated]
        optimizer.state[parameter] = {name: value.clone() for name, value in moments.items()}
        self._follow(gradient, float(gradient.norm()), parameter, optimizer)
        return parameter.detach()

    def _move_average(self) -> None:
        # The average follows closely at first, or it would remember the initial weights for 1 / (1 - decay) steps.
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        self.average.lerp_(self.parameters.vector, 1 - (decay if self.config.average_decay else 0.0))

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return the weights to use after training, by name."""
        return {name: value.detach().clone() for name, value in self.parameters.views(self.average).items()}

    def state(self) -> dict[str, Tensor]:
        """Return everything that resuming needs besides `step`."""
        moments = self._optimizer.state[self._updated]
        return {
            "vector": self.parameters.vector,
            "average": self.average,
            "first_moment": moments["exp_avg"],
            "second_moment": moments["exp_avg_sq"],
            **{f"memory.{name}": value for name, value in self.task.memory.items()},
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint whose `engine` tensors and `progress` document this engine wrote."""
        tensors = checkpoint.tensors["engine"]
        if tensors["vector"].shape != self.parameters.vector.shape:
            raise UserError(
                f"the checkpoint is of a model with {tensors['vector'].numel()} parameters, this one has "
                f"{self.parameters.vector.numel()}; train in another folder or with the settings of the checkpoint"
            )
        for name, remembered in self.task.memory.items():
            if (saved := tensors.get(f"memory.{name}")) is None or saved.shape != remembered.shape:
                raise UserError(
                    f"the checkpoint does not hold what this training remembers as {name!r}, so another rule joined "
                    "its gradients; train in another folder or with the settings of the checkpoint"
                )
            remembered.copy_(saved)
        self.step = int(checkpoint.documents["progress"]["step"])
        self.parameters.vector.copy_(tensors["vector"])
        self.average.copy_(tensors["average"])
        self._optimizer.state[self._updated] = {
            "step": torch.tensor(float(self.step), device=self.average.device),
            "exp_avg": tensors["first_moment"].clone(),
            "exp_avg_sq": tensors["second_moment"].clone(),
        }


def identity_reduce(vector: Tensor) -> Tensor:
    """Sum over the workers of a run that has only one."""
    return vector
