"""What can be said of generated prompts by comparing them with real ones and with the task itself.

Distances are in standard deviations: each feature of x0, the flattened (state, action, reward) of K* steps, is divided
by its deviation over the training prompts, and the distance of two prompts is the root mean square over features. Two
independent draws from a standard normal distribution are sqrt(2) apart in expectation of the square, whatever K* is.

Axes: N, M prompts, X features of x0, F features of a step, C tasks, S observation, V conditioned returns.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.evaluation.verdicts import Steps, Verdict

Doubles = NDArray[np.float64]

CONSTANT = 1e-6
"""A feature that deviates less has no scale of its own and keeps the prompt space's."""


def spread(prompts: Segments) -> Tensor:
    """Return the deviation (X,) of every feature over some prompts."""
    spread_X = PromptSpace.encode(prompts).std(0, correction=0)
    return torch.where(spread_X > CONSTANT, spread_X, 1.0)


def distances(prompts: Segments, others: Segments, spread_X: Tensor) -> Doubles:
    """Return the distance (N, M) of every prompt to every other, in deviations `spread_X`."""
    scaled, scaled_others = (PromptSpace.encode(each).double() / spread_X for each in (prompts, others))
    # By products, the fast way, close prompts have distance 0.
    squares = torch.cdist(scaled, scaled_others, compute_mode="donot_use_mm_for_euclid_dist")
    between_NM: Doubles = (squares / len(spread_X) ** 0.5).numpy()
    return between_NM


def nearest(between_NM: Doubles) -> float:
    """Return the mean over prompts of the distance to the nearest of the others."""
    return float(between_NM.min(axis=1).mean())


def diversity(prompts: Segments, spread_X: Tensor) -> float:
    """Return the mean distance between two different ones of at least two prompts, in deviations."""
    num = len(prompts)
    return float(distances(prompts, prompts, spread_X).sum() / (num * (num - 1)))


class TaskClassifier:
    """Tells tasks apart by a prompt's mean step: linear discriminants, all tasks as likely.

    The task with the nearest mean, by the covariance within tasks: the Bayes rule for Gaussians of equal covariance.
    The covariance is pooled over tasks, as a few-shot set has fewer prompts than a step has features, and hardly
    shrunk: what tells tasks of cheetah-vel apart are small differences of features that vary together. The mean over
    steps keeps the number of features independent of K*.
    """

    def __init__(self, prompts: Segments, tasks_N: NDArray[np.int64]) -> None:
        """Fit it to real prompts and their tasks."""
        features_NF = mean_step(prompts)
        self._tasks_C, of_task_N = np.unique(tasks_N, return_inverse=True)
        means_CF = np.stack([features_NF[of_task_N == number].mean(axis=0) for number in range(len(self._tasks_C))])
        within_NF = features_NF - means_CF[of_task_N]
        deviation_F = within_NF.std(axis=0)
        deviation_F = np.where(deviation_F > CONSTANT, deviation_F, 1.0)
        scaled_NF = within_NF / deviation_F
        # A few prompts have a covariance that is singular, one of each task has none.
        root_FF = np.linalg.cholesky(scaled_NF.T @ scaled_NF / len(scaled_NF) + CONSTANT * np.eye(len(deviation_F)))
        self._whitening_FF = np.linalg.inv(root_FF).T / deviation_F[:, None]
        self._means_CF = means_CF @ self._whitening_FF

    @property
    def chance(self) -> float:
        """Share that guessing gets right."""
        return 1 / len(self._tasks_C)

    def classify(self, prompts: Segments) -> NDArray[np.int64]:
        """Return the task (N,) that each prompt is taken for."""
        whitened_NF = mean_step(prompts) @ self._whitening_FF
        # The rest of the squared distance is the same for all tasks.
        closeness_NC = whitened_NF @ self._means_CF.T - 0.5 * np.square(self._means_CF).sum(axis=1)
        taken_for: NDArray[np.int64] = self._tasks_C[closeness_NC.argmax(axis=1)]
        return taken_for


def mean_step(prompts: Segments) -> Doubles:
    """Return the mean step (N, F) of prompts."""
    steps = PromptSpace.encode(prompts).double().unflatten(1, (prompts.timesteps.shape[1], -1))
    mean_NF: Doubles = steps.mean(1).numpy()
    return mean_NF


def reward_error(steps: Steps, verdict: Verdict) -> float:
    """Return the median over steps of how far a reward is from the task's, in units of reward.

    The median, because a body that begins inside the ground is thrown out with any force.
    """
    return float(np.nanmedian(np.abs(steps.rewards - verdict.rewards)))


def dynamics_error(steps: Steps, verdict: Verdict, deviation_S: Doubles) -> float:
    """Return the median over steps of how far the next state is from where the task goes.

    In deviations of the observation, root mean square over its features; prompts have at least two steps.
    """
    return _median_length(steps.observations[:, 1:] - verdict.observations[:, :-1], deviation_S)


def step_change(steps: Steps, deviation_S: Doubles) -> float:
    """Return the median change of the state in a step, what `dynamics_error` would be in a world that stands still."""
    return _median_length(np.diff(steps.observations, axis=1), deviation_S)


def _median_length(vectors_NPS: NDArray[np.floating], deviation_S: Doubles) -> float:
    return float(np.nanmedian(np.sqrt(np.square(vectors_NPS / deviation_S).mean(axis=-1))))


def slope(conditioned_VN: Doubles, shown_VN: Doubles) -> float:
    """Return by how much what is shown grows where the conditioned return grows by one: least squares.

    Columns have an intercept each, so that what differs between tasks and noises does not count. NaN marks what could
    not be measured and is left out.
    """
    x_VN, y_VN = _centred(conditioned_VN, shown_VN)
    return float((x_VN * y_VN).sum() / max(np.square(x_VN).sum(), np.finfo(float).tiny))


def correlation(conditioned_VN: Doubles, shown_VN: Doubles) -> float:
    """Return the correlation belonging to `slope`; 0 where nothing changes."""
    x_VN, y_VN = _centred(conditioned_VN, shown_VN)
    product = np.sqrt(np.square(x_VN).sum() * np.square(y_VN).sum())
    return float((x_VN * y_VN).sum() / max(product, np.finfo(float).tiny))


def _centred(conditioned_VN: Doubles, shown_VN: Doubles) -> tuple[Doubles, Doubles]:
    """Return both less their mean by column, and 0 where either is unknown."""
    known_VN = np.isfinite(conditioned_VN) & np.isfinite(shown_VN)
    count_N = known_VN.sum(axis=0).clip(min=1)
    kept = [np.where(known_VN, values, 0.0) for values in (conditioned_VN, shown_VN)]
    x_VN, y_VN = (np.where(known_VN, values - values.sum(axis=0) / count_N, 0.0) for values in kept)
    return x_VN, y_VN
