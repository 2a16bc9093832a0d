"""The Prompt-DT and its loss against the definition of the architecture, written in numpy for one row at a time.

The reference has no batch and no padding: a row is cut to its valid steps, so what the masks hide is not there at all.
Axes: K history steps, P prompt steps, A action, D width, L tokens, E features of a head.
"""

from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from promptdiffuser.data.windows import ResidentEpisodes, Segments
from promptdiffuser.training.backbone_objective import BackboneLearning
from promptdiffuser.training.engine import FlatParameters
from promptdiffuser.training.trainings import make_resident
from tests.training.small_backbone import CPU, short_episodes, small_training

Weights = dict[str, NDArray[np.float64]]
Steps = dict[str, NDArray[Any]]
"""The fields of `Segments` for one row, without padding."""
Batch = list[tuple[Steps, Steps]]
"""History and prompt of every row."""
Floats = TypeVar("Floats", ResidentEpisodes, Segments)

STEP = 1e-6
"""Of finite differences."""


def linear(w: Weights, name: str, x: NDArray) -> NDArray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: NDArray) -> NDArray:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    return normal * w[f"{name}.weight"] + w[f"{name}.bias"]


def embed(w: Weights, name: str, steps: Steps) -> NDArray:
    """Return the tokens (3 K, D) of some steps."""
    inputs = {"return_to_go": steps["returns_to_go"][:, None], "state": steps["states"], "action": steps["actions"]}
    time_KD = w[f"{name}.timestep.weight"][steps["timesteps"]]
    tokens_K3D = np.stack([linear(w, f"{name}.{part}", x) + time_KD for part, x in inputs.items()], axis=1)
    return tokens_K3D.reshape(-1, time_KD.shape[-1])


def attention(query_LE: NDArray, key_LE: NDArray, value_LE: NDArray) -> NDArray:
    scores_LL = query_LE @ key_LE.T / np.sqrt(query_LE.shape[-1])
    weights_LL = np.tril(np.exp(scores_LL - scores_LL.max(-1, keepdims=True)))
    return weights_LL / weights_LL.sum(-1, keepdims=True) @ value_LE


def block(w: Weights, name: str, x_LD: NDArray, heads: int) -> NDArray:
    query_key_value = np.split(linear(w, f"{name}.attention_in", norm(w, f"{name}.attention_norm", x_LD)), 3, axis=-1)
    by_head = zip(*(np.split(x, heads, axis=-1) for x in query_key_value), strict=True)
    x_LD = x_LD + linear(w, f"{name}.attention_out", np.concatenate([attention(*head) for head in by_head], axis=-1))
    hidden = np.maximum(linear(w, f"{name}.mlp_in", norm(w, f"{name}.mlp_norm", x_LD)), 0)
    return x_LD + linear(w, f"{name}.mlp_out", hidden)


def actions_of(w: Weights, history: Steps, prompt: Steps, layers: int = 2, heads: int = 2) -> NDArray:
    """Return the actions (K, A) that the network decides on at the state token of every history step."""
    x_LD = np.concatenate([embed(w, "embed_prompt", prompt), embed(w, "embed_history", history)])
    x_LD = norm(w, "embedding_norm", x_LD)
    for layer in range(layers):
        x_LD = block(w, f"blocks.{layer}", x_LD, heads)
    at_states_KD = x_LD[3 * len(prompt["states"]) + 1 :: 3]
    return np.tanh(linear(w, "action_head", norm(w, "final_norm", at_states_KD)))


def loss_of(w: Weights, batch: Batch) -> float:
    """Return the mean squared error over all numbers of all valid steps, of predictions in some number format."""
    errors = [actions_of(w, *row) - row[0]["actions"] for row in batch]
    return float(np.square(np.concatenate(errors)).mean())


def in_format(tensors: Floats, dtype: torch.dtype) -> Floats:
    names = ("returns_to_go", "states", "actions", "rewards")
    return replace(tensors, **{name: getattr(tensors, name).to(dtype) for name in names})


def valid_steps(segments: Segments, row: int) -> Steps:
    valid = segments.valid[row]
    return {field.name: getattr(segments, field.name)[row][valid].numpy() for field in fields(segments)}


class Network:
    """A learning task in a number format, with weights that move every action, and the batch of its update 0."""

    def __init__(self, dtype: torch.dtype) -> None:
        training = small_training(episodes := short_episodes())
        windows, pool = make_resident(training, episodes, CPU)
        pool = replace(pool, prompts=in_format(pool.prompts, dtype))
        self.task: BackboneLearning = training.learning_task(in_format(windows, dtype), pool, CPU)
        self.task.model.to(dtype)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.task.model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype) * 0.3
        self.parameters = FlatParameters(self.task.model)
        seen: list[tuple[Segments, Segments]] = []
        handle = self.task.model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs))
        self.share = self.task.local_gradients(self.parameters, 0)
        handle.remove()
        [(self.history, self.prompt)] = seen
        self.batch: Batch = [
            (valid_steps(self.history, row), valid_steps(self.prompt, row)) for row in range(len(self.history))
        ]
        self.weights: Weights = {
            name: value.numpy().astype(np.float64) for name, value in self.parameters.named_views.items()
        }


FORMATS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])


@FORMATS
def test_actions_are_those_of_the_definition(dtype: torch.dtype, tolerance: float) -> None:
    network = Network(dtype)
    assert len({len(history["states"]) for history, _ in network.batch}) > 2, "hardly a row of this batch is padded"
    predicted = network.task.model(network.history, network.prompt).detach().numpy()
    for row, (history, prompt) in enumerate(network.batch):
        expected = actions_of(network.weights, history, prompt)
        np.testing.assert_allclose(predicted[row, : len(expected)], expected, rtol=0, atol=tolerance)


@FORMATS
def test_loss_is_the_mean_over_valid_steps(dtype: torch.dtype, tolerance: float) -> None:
    network = Network(dtype)
    expected = loss_of(network.weights, network.batch)
    assert network.share.scalars["loss"].item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", ["embed_prompt.action.weight", "blocks.0.attention_in.bias", "final_norm.weight"])
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    network = Network(torch.float64)
    gradient = network.parameters.views(network.share.gradients_GP[0])[name].numpy()
    parameter, expected = network.weights[name], np.zeros_like(gradient)
    for place in np.ndindex(parameter.shape):
        value, losses = parameter[place], []
        for offset in (STEP, -STEP):
            parameter[place] = value + offset
            losses.append(loss_of(network.weights, network.batch))
        parameter[place] = value
        expected[place] = (losses[0] - losses[1]) / (2 * STEP)
    assert np.abs(expected).max() > 1e-3
    # The gradient passes the predictions in fp32 too.
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)
