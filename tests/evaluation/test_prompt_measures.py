"""Measures of prompts against loops in numpy and against cases whose answer is known.

Axes: N, M prompts, P prompt steps, S state, A action, X features of a flattened prompt, V conditioned returns.
"""

import numpy as np
import pytest
import torch

from promptdiffuser.data.windows import Segments
from promptdiffuser.evaluation import prompt_measures as measure
from promptdiffuser.evaluation.verdicts import Steps, Verdict

P, S, A = 4, 3, 2
X = P * (S + A + 1)


def prompts_of(x_NX: np.ndarray) -> Segments:
    steps = torch.from_numpy(x_NX.astype(np.float32)).unflatten(1, (P, -1))
    times = torch.zeros(len(steps), P, dtype=torch.int64)
    return Segments(times.float(), steps[..., :S], steps[..., S:-1], steps[..., -1], times, times == 0)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def steps_of(observations: np.ndarray, rewards: np.ndarray) -> Steps:
    return Steps(observations, np.zeros((*rewards.shape, A), np.float32), rewards)


def test_distances_are_root_mean_squares_in_deviations() -> None:
    x_NX, y_MX, spread_X = normal(5, X), normal(7, X, seed=1), np.abs(normal(X, seed=2)) + 0.1
    found = measure.distances(prompts_of(x_NX), prompts_of(y_MX), torch.from_numpy(spread_X))
    expected = [[np.sqrt(np.mean(((x - y) / spread_X) ** 2)) for y in y_MX] for x in x_NX]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert measure.nearest(found) == pytest.approx(np.mean([min(row) for row in expected]))


def test_a_copy_is_at_distance_zero_and_independent_prompts_at_root_two() -> None:
    x_NX = normal(400, X)
    one, other = prompts_of(x_NX), prompts_of(normal(400, X, seed=1))
    assert measure.nearest(measure.distances(one, one, torch.ones(X))) == 0
    between = measure.distances(one, other, measure.spread(one))
    assert np.sqrt(np.square(between).mean()) == pytest.approx(np.sqrt(2), rel=0.01)


def test_spread_is_the_deviation_where_a_feature_has_one() -> None:
    x_NX = 3 * normal(50, X)
    x_NX[:, 5] = 0.7
    found = measure.spread(prompts_of(x_NX)).numpy()
    assert found[5] == 1
    np.testing.assert_allclose(np.delete(found, 5), np.delete(x_NX.std(axis=0), 5), rtol=1e-5)


def test_diversity_is_the_mean_over_pairs_of_different_prompts() -> None:
    x_NX = normal(6, X)
    pairs = [np.sqrt(np.mean((x_NX[i] - x_NX[j]) ** 2)) for i in range(6) for j in range(i)]
    assert measure.diversity(prompts_of(x_NX), torch.ones(X)) == pytest.approx(np.mean(pairs), rel=1e-6)
    assert measure.diversity(prompts_of(np.repeat(x_NX[:1], 3, axis=0)), torch.ones(X)) == 0


def test_the_classifier_is_the_bayes_rule_of_gaussians() -> None:
    """Tasks differ in a quiet direction among loud ones: the nearest mean without a covariance is near guessing."""
    rng, tasks_N = np.random.default_rng(0), np.repeat([2, 7, 15], 400)
    deviation_F = np.array([20.0, 0.1, 1, 1, 1, 1])
    mixing_FF = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    centres_CF = np.stack([np.arange(6) == 1] * 3) * np.array([[-0.2], [0.0], [0.2]])

    def draw(seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=(1200, 6)) * deviation_F
        return (centres_CF.repeat(400, axis=0) + noise) @ mixing_FF

    def prompts(mean_NF: np.ndarray) -> Segments:
        return prompts_of(np.tile(mean_NF, (1, P)))

    classifier = measure.TaskClassifier(prompts(draw(0)), tasks_N)
    assert classifier.chance == pytest.approx(1 / 3)
    drawn = draw(1)
    # Two deviations apart in the one feature that counts.
    bayes = np.array([2, 7, 15])[np.abs((drawn @ mixing_FF.T)[:, 1:2] - [-0.2, 0, 0.2]).argmin(axis=1)]
    found = classifier.classify(prompts(drawn))
    assert (found == bayes).mean() > 0.95
    assert (found == tasks_N).mean() == pytest.approx((bayes == tasks_N).mean(), abs=0.02)
    plain = np.stack([draw(0)[tasks_N == task].mean(axis=0) for task in (2, 7, 15)])
    assert (np.array([2, 7, 15])[np.linalg.norm(drawn[:, None] - plain, axis=2).argmin(axis=1)] == tasks_N).mean() < 0.5


def test_the_classifier_needs_one_prompt_of_a_task() -> None:
    x_NX = normal(3, X)
    classifier = measure.TaskClassifier(prompts_of(x_NX), np.array([4, 1, 9]))
    assert classifier.classify(prompts_of(x_NX)).tolist() == [4, 1, 9]


def test_a_mean_step_averages_over_steps() -> None:
    x_NX = normal(3, X)
    np.testing.assert_allclose(measure.mean_step(prompts_of(x_NX)), x_NX.reshape(3, P, -1).mean(axis=1), rtol=1e-5)


def test_errors_are_medians_over_the_steps_whose_verdict_is_known() -> None:
    steps = steps_of(normal(2, 3, S), normal(2, 3, seed=1))
    deviation_S, after = np.array([1.0, 2, 4]), normal(2, 3, S, seed=2).astype(np.float64)
    rewards = steps.rewards + np.array([[0.1, -0.3, np.nan], [0.2, 0.5, -9.0]])
    after[1, 0] = np.nan
    assert measure.reward_error(steps, Verdict(after, rewards)) == pytest.approx(0.3, abs=1e-6)
    lengths = [
        np.sqrt(np.mean(((steps.observations[n, p + 1] - after[n, p]) / deviation_S) ** 2))
        for n, p in ((0, 0), (0, 1), (1, 1))
    ]
    assert measure.dynamics_error(steps, Verdict(after, rewards), deviation_S) == pytest.approx(np.median(lengths))
    still = Verdict(steps.observations.astype(np.float64), rewards)
    change = measure.step_change(steps, deviation_S)
    assert change == pytest.approx(measure.dynamics_error(steps, still, deviation_S), rel=1e-6)


def test_slope_and_correlation_leave_out_what_differs_between_columns() -> None:
    asked = np.repeat(np.linspace(-3, 2, 9)[:, None], 5, axis=1)
    offsets, noise = 10 * normal(5), 0.1 * normal(9, 5, seed=1)
    shown = 0.8 * asked + offsets + noise
    assert measure.slope(asked, 0.8 * asked + offsets) == pytest.approx(0.8, rel=1e-6)
    design = np.zeros((45, 6))
    design[:, 0] = asked.ravel()
    design[np.arange(45), 1 + np.arange(45) % 5] = 1
    assert measure.slope(asked, shown) == pytest.approx(np.linalg.lstsq(design, shown.ravel(), rcond=None)[0][0])
    centred = [values - values.mean(axis=0) for values in (asked, shown)]
    assert measure.correlation(asked, shown) == pytest.approx(np.corrcoef(*(c.ravel() for c in centred))[0, 1])
    assert measure.correlation(asked, 5 - asked) == pytest.approx(-1)


def test_slope_and_correlation_of_what_does_not_answer() -> None:
    asked = np.repeat(np.linspace(-3, 2, 9)[:, None], 2, axis=1)
    for deaf in (np.full((9, 2), 4.0), np.full((9, 2), np.nan)):
        assert measure.slope(asked, deaf) == measure.correlation(asked, deaf) == 0
    assert measure.slope(np.ones((3, 2)), normal(3, 2)) == 0
    known = 2 * asked
    known[3, 0] = np.nan
    assert measure.slope(asked, known) == pytest.approx(2)
