"""Small policies for tests: one that depends on its own episode alone, and a backbone with random weights."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import PromptPool, Segments, cut_pool_pieces
from promptdiffuser.models.backbone import BackboneConfig, PromptDT
from promptdiffuser.rollout.policies import AdaptedPolicies, AdaptedPolicy
from promptdiffuser.rollout.stepping import BatchPolicy, EpisodeRequest, Rows
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.training.backbone_objective import freeze
from promptdiffuser.training.model_folders import build_backbone
from tests.data.synthetic import draw_episodes

TINY = BackboneConfig(width=16, layers=2, heads=2, history=6, prompt_length=5, dropout=0.1)


class FeedbackPolicy:
    """Acts on the observation and on the rewards so far, row by row, so that no batched sum can couple the rows."""

    def __init__(self, family: TaskFamily) -> None:
        rng = np.random.default_rng(0)
        self.weight = rng.normal(size=(family.observation_dim, family.action_dim))
        self.total = np.zeros(0)
        self.observed = 0

    def begin(self, num_rows: int) -> None:
        self.total = np.zeros(num_rows)
        self.observed = 0

    def start(self, rows: Rows, requests: Sequence[EpisodeRequest]) -> None:
        assert len(rows) == len(requests)
        self.total[rows] = 0

    def act(self, observations_BS: np.ndarray) -> np.ndarray:
        rows = [1.5 * np.sin(row @ self.weight + total) for row, total in zip(observations_BS, self.total, strict=True)]
        return np.array(rows, np.float32)  # beyond [-1, 1] at times

    def observe(self, rewards_B: np.ndarray) -> None:
        self.total = self.total + rewards_B
        self.observed += 1

    def keep(self, rows: Rows) -> None:
        self.total = self.total[rows]


def start_all(policy: BatchPolicy, requests: Sequence[EpisodeRequest]) -> None:
    """Begin one episode a row."""
    policy.begin(len(requests))
    policy.start(np.arange(len(requests)), requests)


def tiny_backbone(family: TaskFamily, seed: int = 0, config: BackboneConfig = TINY) -> PromptDT:
    """A frozen backbone whose actions are not all near zero."""
    backbone = build_backbone(config, family, seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(3.0)
    return freeze(backbone)


def tiny_pool(family: TaskFamily, tasks: Sequence[int], seed: int = 0) -> tuple[PromptPool, Normaliser]:
    """A prompt pool with one made-up episode for each entry of `tasks`."""
    episodes = draw_episodes(family, tasks, seed=seed)
    normaliser = Normaliser.fit([episodes], family.return_scale)
    pieces = cut_pool_pieces(episodes, TINY.prompt_length, num_transitions=4)
    return PromptPool.build(pieces, normaliser, torch.device("cpu")), normaliser


def prompted(
    backbone: PromptDT, normaliser: Normaliser, prompts: Mapping[str, Mapping[int, Segments]]
) -> AdaptedPolicies:
    """Policies that share a backbone and have their prompts from `prompts`, method -> task -> prompts."""
    policies = {
        method: {task: AdaptedPolicy(backbone, of_task) for task, of_task in by_task.items()}
        for method, by_task in prompts.items()
    }
    return AdaptedPolicies(normaliser, policies)


def backbone_of(policies: AdaptedPolicies) -> PromptDT:
    """The backbone of policies that share one."""
    (backbone,) = {
        id(p.backbone): p.backbone for of_method in policies.policies.values() for p in of_method.values()
    }.values()
    return backbone
