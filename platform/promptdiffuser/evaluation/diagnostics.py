"""A look inside a diffuser: how the prompts that it generates for target tasks compare with real ones.

Everything is measured a target task at a time. Its real prompts are those of its few-shot set, which the diffuser sees,
and those of its other episodes in the dataset, which nothing sees and which show what a real prompt would get. Nothing
is chosen by these numbers.

Axes: N prompts, P prompt steps, X features of x0, S observation, V conditioned returns.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, Segments, cut_pool_pieces
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.evaluation import prompt_measures as measure
from promptdiffuser.evaluation.verdicts import Steps, judge_of
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tasks.family import TaskFamily

NUM_PROMPTS = 64
"""Prompts generated for each task."""
SWEPT_PROMPTS = 8
"""Prompts generated for each conditioned return and task; each has the same noise for all returns."""
SWEPT_QUANTILES = np.linspace(0.1, 0.9, 9)
"""Where the conditioned returns lie among those of the training prompts: none is out of the ordinary."""

Measures = dict[str, float]


@dataclass(frozen=True)
class RealPrompts:
    """The real prompts that generated ones are compared with."""

    training: PromptPool
    """Of the training tasks; without transitions."""
    few_shot: dict[int, PromptPool]
    """Target task -> its few-shot set."""
    unseen: dict[int, Segments]
    """Target task -> prompts of its other episodes; no entry where the dataset has none."""
    normaliser: Normaliser

    @staticmethod
    def read(
        dataset: Dataset,
        quality: Quality,
        targets: Sequence[int],
        few_shot: FewShotConfig,
        prompt_length: int,
        context_transitions: int,
        normaliser: Normaliser,
    ) -> "RealPrompts":
        """Cut the prompts from a dataset, one file in memory at a time.

        Args:
            dataset: The dataset.
            quality: Quality of the training tasks' episodes.
            targets: The target tasks.
            few_shot: Their few-shot sets.
            prompt_length: Steps of a prompt.
            context_transitions: Transitions of each few-shot episode that a task context is read from.
            normaliser: The backbone's.
        """

        def pool(parts: Iterable[Episodes], num_transitions: int) -> PromptPool:
            pieces = [cut_pool_pieces(part, prompt_length, num_transitions) for part in parts]
            joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
            return PromptPool.build(joined, normaliser, torch.device("cpu"))

        episodes = {task: dataset.read([task], few_shot.quality) for task in targets}
        others = {task: few_shot.others(of_task) for task, of_task in episodes.items()}
        return RealPrompts(
            training=pool(dataset.parts(dataset.family.train_tasks, quality), 0),
            few_shot={task: pool([few_shot.choose(each)], context_transitions) for task, each in episodes.items()},
            unseen={task: pool([each], 0).prompts for task, each in others.items() if len(each)},
            normaliser=normaliser,
        )

    def of(self, task: int) -> Segments:
        """Return all real prompts of a target task."""
        few_shot = self.few_shot[task].prompts
        return Segments.concatenate([few_shot, self.unseen[task]]) if task in self.unseen else few_shot

    def of_training_tasks_but(self, targets: Iterable[int]) -> PromptPool:
        """Return the training prompts of other tasks than these, some of which may be training tasks too."""
        return self.training.select(~np.isin(self.training.index.tasks, list(targets)))


def mean_of_tasks(by_task: Mapping[int, Measures]) -> Measures:
    """Return the mean over tasks of every measure that all of them have."""
    names = [name for name in next(iter(by_task.values())) if all(name in measures for measures in by_task.values())]
    return {name: float(np.mean([measures[name] for measures in by_task.values()])) for name in names}


class Inspector:
    """What is the same for all diffusers that are looked into: real prompts, and what judges generated ones."""

    def __init__(self, family: TaskFamily, real: RealPrompts) -> None:
        """Fit the classifier and get the judge ready; targets are the tasks that `real` has few-shot sets of."""
        self._real = real
        self._judge = judge_of(family, real.normaliser, real.training)
        self._spread_X = measure.spread(real.training.prompts)
        self._deviation_S = real.normaliser.state_std.double().numpy()
        known = [real.of_training_tasks_but(real.few_shot), *real.few_shot.values()]
        self._classifier = measure.TaskClassifier(
            Segments.concatenate([pool.prompts for pool in known]),
            np.concatenate([pool.index.tasks for pool in known]),
        )

    def inspect(self, task: int, diffuser: Diffuser, seed: int) -> Measures:
        """Return the measures of the prompts that a diffuser, on the CPU, generates; docs/diffusion.md lists them.

        Args:
            task: The target task.
            diffuser: The diffuser, adapted to the task.
            seed: Address of the noise.
        """
        real = self._real
        generated = diffuser.prompts_for(real.few_shot[task], NUM_PROMPTS, seed, "inside", task)
        measures = self._likeness(task, generated)
        if task in real.unseen:
            measures |= {f"real_{name}": value for name, value in self._likeness(task, real.unseen[task]).items()}
        return measures | self._scales(task, generated) | self._response(task, diffuser, seed)

    def _likeness(self, task: int, prompts: Segments) -> Measures:
        """Return what generated and real prompts are measured by alike."""
        real, found = self._real, Measures()
        others = {"target": real.few_shot[task], "training": real.of_training_tasks_but([task])}
        for name, pool in others.items():
            if len(pool.prompts):
                between_NM = measure.distances(prompts, pool.prompts, self._spread_X)
                found |= {f"{name}_nearest": measure.nearest(between_NM), f"{name}_mean": float(between_NM.mean())}
        found["task_accuracy"] = float((self._classifier.classify(prompts) == task).mean())
        steps = Steps.of(prompts, real.normaliser)
        verdict = self._judge(task, steps)
        found["reward_error"] = measure.reward_error(steps, verdict)
        if steps.rewards.shape[1] > 1:
            found["dynamics_error"] = measure.dynamics_error(steps, verdict, self._deviation_S)
        return found | {"lost_steps": float(np.isnan(verdict.rewards).mean())}

    def _scales(self, task: int, generated: Segments) -> Measures:
        """Return what the other measures are read by, and how diverse generated prompts are on the scale of real."""
        real = self._real.of(task)
        steps = Steps.of(real, self._real.normaliser)
        found = {
            "task_chance": self._classifier.chance,
            "reward_deviation": float(steps.rewards.std()),
            "judged_by_simulator": float(self._judge.is_simulator),
        }
        if steps.rewards.shape[1] > 1:
            found["step_change"] = measure.step_change(steps, self._deviation_S)
        if len(real) > 1:
            of_generated, of_real = (measure.diversity(prompts, self._spread_X) for prompts in (generated, real))
            found["diversity"] = of_generated / of_real
        return found

    def _response(self, task: int, diffuser: Diffuser, seed: int) -> Measures:
        """Return how what is shown in a prompt follows the return-to-go at its first step.

        The condition is swept along what the training prompts have: all steps at the same number of deviations from
        their mean.
        """
        space, few_shot, training = diffuser.space, self._real.few_shot[task], self._real.training.prompts
        usual_N = ((training.returns_to_go - space.return_mean) / space.return_std).mean(1).numpy()
        prompts = []
        for place in np.quantile(usual_N, SWEPT_QUANTILES):
            returns_P = space.return_mean + float(place) * space.return_std
            asked = replace(few_shot.prompts, returns_to_go=returns_P.expand_as(few_shot.prompts.returns_to_go))
            prompts.append(
                diffuser.prompts_for(replace(few_shot, prompts=asked), SWEPT_PROMPTS, seed, "inside-sweep", task)
            )
        swept = Segments.concatenate(prompts)
        steps, real_steps = (Steps.of(each, self._real.normaliser) for each in (swept, training))
        asked_VN = self._asked(swept).reshape(len(SWEPT_QUANTILES), SWEPT_PROMPTS)
        found = Measures()
        for name, conditioned_VN, rewards_NP in (
            ("return", asked_VN, steps.rewards),
            ("true_return", asked_VN, self._judge(task, steps).rewards),
            ("real_return", self._asked(training)[:, None], real_steps.rewards),
        ):
            shown_VN = rewards_NP.sum(axis=1, dtype=np.float64).reshape(conditioned_VN.shape)
            found[f"{name}_slope"] = measure.slope(conditioned_VN, shown_VN)
            found[f"{name}_correlation"] = measure.correlation(conditioned_VN, shown_VN)
        return found

    def _asked(self, prompts: Segments) -> measure.Doubles:
        """Return the return-to-go (N,) at the first step, in units of reward."""
        scaled_N: measure.Doubles = prompts.returns_to_go[:, 0].double().numpy()
        return scaled_N * float(self._real.normaliser.return_scale)
