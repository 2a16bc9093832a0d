"""Windows and prompts gathered from tensors in memory, at positions that `plans` addresses by seed.

Axes: N episodes, T steps, B rows of a batch, K steps of a segment, S state, A action, M transitions of a context,
U task ids, G numbers of a goal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import EpisodeIndex, WindowPlan
from promptdiffuser.errors import UserError
from promptdiffuser.rng import numpy_generator


@dataclass(frozen=True)
class Segments:
    """A batch of trajectory segments in the networks' units: history windows or prompts."""

    returns_to_go: Tensor
    """(B, K) divided by the return scale."""
    states: Tensor
    """(B, K, S) normalised."""
    actions: Tensor
    """(B, K, A) in [-1, 1]."""
    rewards: Tensor
    """(B, K) standardised."""
    timesteps: Tensor
    """(B, K) int64 step within the episode."""
    valid: Tensor
    """(B, K) bool; padding stands on the right, so causal attention alone keeps valid steps from seeing it."""

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.states)

    def select(self, rows: Tensor | slice) -> "Segments":
        """Return the segments at an index tensor or slice."""
        return Segments(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def first(self, num_steps: int) -> "Segments":
        """Return the first steps of every segment."""
        return Segments(**{field.name: getattr(self, field.name)[:, :num_steps] for field in fields(self)})

    def trimmed(self) -> "Segments":
        """Return the segments without the steps that are padding in all of them."""
        return self.first(int(self.valid.any(dim=0).sum()))

    def to(self, device: torch.device) -> "Segments":
        """Return the segments on a device."""
        return Segments(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence["Segments"]) -> "Segments":
        """Join batches of equal K."""
        return Segments(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Segments)})


def cut_pool_pieces(episodes: Episodes, prompt_length: int, num_transitions: int) -> dict[str, NDArray[np.generic]]:
    """Cut from every episode what a `PromptPool` keeps of it, in environment units.

    The prompt is the last K* steps but one (mxu34/prompt-dt `get_prompt`); the transitions are at addressed steps.
    Plain arrays, one row an episode, so that Ray Data can map it over Parquet batches.

    Raises:
        UserError: An episode is too short to hold a prompt and the step after it.
    """
    if episodes.lengths.min() <= prompt_length:
        raise UserError(
            f"an episode of task {episodes.tasks[episodes.lengths.argmin()]} has {episodes.lengths.min()} steps, "
            f"a prompt of {prompt_length} needs {prompt_length + 1}; lower --backbone.prompt-length"
        )
    rows_N1 = np.arange(len(episodes))[:, None]
    prompt_NP = (episodes.lengths - prompt_length - 1)[:, None] + np.arange(prompt_length)
    # Addressed by the episode's own seed, so a pool over a part of the episodes holds the same transitions.
    drawn_NM = np.stack(
        [
            numpy_generator(int(seed), "transitions").integers(0, length, num_transitions)
            for seed, length in zip(episodes.seeds, episodes.lengths, strict=True)
        ]
    )
    return {
        "task": episodes.tasks,
        "length": episodes.lengths,
        "prompt_timesteps": prompt_NP,
        "prompt_returns_to_go": episodes.returns_to_go()[rows_N1, prompt_NP],
        "prompt_observations": episodes.observations[rows_N1, prompt_NP],
        "prompt_actions": episodes.actions[rows_N1, prompt_NP],
        "prompt_rewards": episodes.rewards[rows_N1, prompt_NP],
        "transition_observations": episodes.observations[rows_N1, drawn_NM],
        "transition_actions": episodes.actions[rows_N1, drawn_NM],
        "transition_rewards": episodes.rewards[rows_N1, drawn_NM],
    }


@dataclass(frozen=True)
class PromptPool:
    """The prompt of every episode and the transitions a task context is read from; small, so every worker has all."""

    index: EpisodeIndex
    prompts: Segments
    """(N, K*)"""
    transitions: Tensor
    """(N, M, S + A + 1) normalised (state, action, reward)."""

    @staticmethod
    def build(pieces: Mapping[str, NDArray[Any]], normaliser: Normaliser, device: torch.device) -> "PromptPool":
        """Normalise the pieces cut by `cut_pool_pieces`, ordered by task and episode."""
        cut = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in pieces.items()}
        prompts = Segments(
            returns_to_go=cut["prompt_returns_to_go"] / normaliser.return_scale,
            states=normaliser.states(cut["prompt_observations"]),
            actions=cut["prompt_actions"],
            rewards=normaliser.rewards(cut["prompt_rewards"]),
            timesteps=cut["prompt_timesteps"],
            valid=torch.ones_like(cut["prompt_timesteps"], dtype=torch.bool),
        )
        transitions = torch.cat(
            [
                normaliser.states(cut["transition_observations"]),
                cut["transition_actions"],
                normaliser.rewards(cut["transition_rewards"])[..., None],
            ],
            dim=-1,
        )
        return PromptPool(EpisodeIndex(pieces["task"], pieces["length"]), prompts.to(device), transitions.to(device))

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "PromptPool":
        """Return the pool of some episodes; ascending rows keep it grouped by task."""
        index, kept = self.index, torch.from_numpy(rows).to(self.transitions.device)
        return PromptPool(
            EpisodeIndex(index.tasks[rows], index.lengths[rows]), self.prompts.select(kept), self.transitions[kept]
        )

    def with_goals(self, goals_UG: Tensor) -> "PromptPool":
        """Return the pool with the goal of each episode's task in the place of its transitions."""
        tasks = torch.from_numpy(self.index.tasks).to(goals_UG.device)
        return replace(self, transitions=goals_UG[tasks][:, None])

    def prompts_at(self, episodes_B: NDArray[np.int64]) -> Segments:
        """Return the prompts (B, K*) of some episodes."""
        return self.prompts.select(torch.from_numpy(episodes_B).to(self.transitions.device))

    def in_turn(self, count: int, num_episodes: int | None = None) -> Segments:
        """Return prompts (count, K*) of episodes in turn, of the first ones alone if a number is given."""
        return self.prompts_at(np.arange(count) % (num_episodes or len(self.prompts)))

    def whole_context(self, count: int) -> Tensor:
        """Return (count, N * M, S + A + 1) the transitions of all episodes, once a row."""
        return self.contexts_at(np.tile(np.arange(len(self.prompts)), (count, 1)))

    def contexts_at(self, context_episodes_BC: NDArray[np.int64]) -> Tensor:
        """Return (B, C * M, S + A + 1) few-shot transitions."""
        rows = torch.from_numpy(context_episodes_BC).to(self.transitions.device)
        return self.transitions[rows].flatten(1, 2)


class WindowSource(Protocol):
    """Where a worker has the history windows of its share of every batch from."""

    @property
    def device(self) -> torch.device:
        """Where the windows are."""

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""

    def held(self, plan: WindowPlan) -> NDArray[np.intp]:
        """Return the rows of a plan that are this worker's."""

    def windows(self, step: int, plan: WindowPlan) -> tuple[NDArray[np.intp], Segments]:
        """Return the rows of update `step`'s plan that are this worker's, and their windows."""


@dataclass(frozen=True)
class ResidentEpisodes:
    """A shard of episodes kept as contiguous tensors on one device; batches are one gather."""

    row_of: Tensor
    """(all episodes,) int64 row of an episode in this shard, -1 where another shard holds it."""
    returns_to_go: Tensor
    states: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.states.device

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.actions.shape[-1]

    @staticmethod
    def build(
        episodes: Episodes,
        numbers: NDArray[np.int64],
        normaliser: Normaliser,
        device: torch.device,
        num_episodes: int | None = None,
    ) -> "ResidentEpisodes":
        """Normalise a shard; `numbers` (N,) are its episodes' places in the index of all `num_episodes`."""
        row_of = torch.full((num_episodes or len(episodes),), -1, dtype=torch.int64)
        row_of[torch.from_numpy(numbers)] = torch.arange(len(episodes))
        return ResidentEpisodes(
            row_of=row_of.to(device),
            returns_to_go=(torch.from_numpy(episodes.returns_to_go()) / normaliser.return_scale).to(device),
            states=normaliser.states(torch.from_numpy(episodes.observations)).to(device),
            actions=torch.from_numpy(episodes.actions).to(device),
            rewards=normaliser.rewards(torch.from_numpy(episodes.rewards)).to(device),
            lengths=torch.from_numpy(episodes.lengths).to(device),
        )

    def select(self, kept_N: NDArray[np.bool_]) -> "ResidentEpisodes":
        """Return some of the episodes, numbered anew; for a shard that holds all N of the index."""
        kept = torch.from_numpy(kept_N).to(self.device)
        tensors = {field.name: getattr(self, field.name)[kept] for field in fields(self) if field.name != "row_of"}
        return ResidentEpisodes(row_of=torch.arange(int(kept_N.sum()), device=self.device), **tensors)

    def held(self, plan: WindowPlan) -> NDArray[np.intp]:
        """Return the rows of a plan whose episode this shard holds."""
        rows = self.row_of[torch.from_numpy(plan.episodes).to(self.row_of.device)]
        return np.flatnonzero((rows >= 0).cpu().numpy())

    def windows(self, step: int, plan: WindowPlan) -> tuple[NDArray[np.intp], Segments]:
        """Gather the windows of a plan that this shard holds."""
        rows = self.held(plan)
        return rows, self.segments(plan.episodes[rows], plan.starts[rows], plan.window_steps)

    def segments(self, episodes_B: NDArray[np.int64], starts_B: NDArray[np.int64], num_steps: int) -> Segments:
        """Gather (B, num_steps) windows; steps past an episode's end are zero and marked invalid."""
        device = self.device
        rows_B1 = self.row_of[torch.from_numpy(episodes_B).to(device)][:, None]
        steps_BK = torch.from_numpy(starts_B).to(device)[:, None] + torch.arange(num_steps, device=device)
        valid_BK = steps_BK < self.lengths[rows_B1]
        steps_BK = torch.where(valid_BK, steps_BK, 0)

        def gather(tensor: Tensor) -> Tensor:
            values = tensor[rows_B1, steps_BK]
            return values * valid_BK.reshape(*valid_BK.shape, *[1] * (values.ndim - 2))

        return Segments(
            returns_to_go=gather(self.returns_to_go),
            states=gather(self.states),
            actions=gather(self.actions),
            rewards=gather(self.rewards),
            timesteps=steps_BK,
            valid=valid_BK,
        )
