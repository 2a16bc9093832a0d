"""Scores against numbers worked out by hand, and intervals against independent implementations."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.manifest import TaskRecord
from promptdiffuser.evaluation.protocol import ProtocolConfig
from promptdiffuser.evaluation.scores import RESAMPLES, bootstrap_interval, summarise_method, summarise_targets

REFERENCES = {
    2: TaskRecord(goal=(0.225,), random_return=-100.0, expert_return=0.0),
    26: TaskRecord(goal=(2.025,), random_return=-400.0, expert_return=-200.0),
}
# Task 2: prompts with means -10 and -30. Task 26: four episodes of one prompt, more rows than task 2 has a prompt.
EPISODES = pd.DataFrame(
    [
        (2, 0, 0.0, True, 1.0),
        (2, 0, -20.0, True, 1.0),
        (2, 1, -20.0, True, 1.0),
        (2, 1, -40.0, False, 1.0),
        (26, 0, -200.0, True, 2.0),
        (26, 0, -250.0, False, 2.0),
        (26, 0, -310.0, False, 2.0),
        (26, 0, -400.0, False, 2.0),
        (26, 0, -240.0, False, 2.0),
    ],
    columns=["task", "prompt", "return", "success", "seconds"],
).assign(diverged=False)


def test_summary_equals_hand_numbers() -> None:
    summary = summarise_method(EPISODES, REFERENCES, seed=0)
    # Task 2: (0 - 20 - 20 - 40) / 4 = -20. Task 26: (-200 - 250 - 310 - 400 - 240) / 5 = -280.
    assert summary["per_task"] == {"2": pytest.approx(-20.0), "26": pytest.approx(-280.0)}
    assert summary["mean"] == pytest.approx(-150.0)  # tasks weigh the same though one has more episodes
    # Task 2: -20 is at 0.8 between -100 and 0. Task 26: -280 is at 0.6 between -400 and -200.
    assert summary["normalised"] == pytest.approx(0.7)
    # Scores 1, 0.8, 0.8, 0.6 and 1, 0.75, 0.45, 0, 0.8: two of nine are below a half.
    assert summary["failed_share"] == pytest.approx(2 / 9)
    # Task 2: three of four. Task 26: one of five. Not four of nine: tasks weigh the same.
    assert summary["success"] == pytest.approx((0.75 + 0.2) / 2)
    assert summary["seconds"] == pytest.approx(14.0)
    assert summary["diverged"] == 0
    # Resampling two prompts of means -10 and -30: the mean of task 2 is -30, -20 or -10; task 26 has one prompt.
    assert summary["ci_low"] == pytest.approx(-155.0)
    assert summary["ci_high"] == pytest.approx(-145.0)


def test_episodes_without_a_return_are_left_out_of_means_counted_as_failed_and_reported() -> None:
    lost = pd.DataFrame([(2, 1, np.nan, False, 1.0, True), (26, 1, np.nan, False, 2.0, True)], columns=EPISODES.columns)
    summary, without = (summarise_method(frame, REFERENCES, 0) for frame in (pd.concat([EPISODES, lost]), EPISODES))
    assert summary["diverged"] == 2
    assert summary["failed_share"] == pytest.approx(4 / 11)
    for key in ("mean", "normalised", "per_task", "ci_low", "ci_high"):
        assert summary[key] == without[key]


def test_a_task_without_a_return_has_no_mean() -> None:
    lost = EPISODES.assign(**{"return": EPISODES["return"].mask(EPISODES.task == 2)}, diverged=EPISODES.task == 2)
    summary = summarise_method(lost, REFERENCES, 0)
    assert np.isnan(summary["per_task"].get("2", np.nan))
    assert np.isnan([summary["mean"], summary["ci_low"]]).all()


def test_targets_are_summarised_apart_in_the_order_of_the_protocol() -> None:
    frame = pd.concat([EPISODES.assign(target_return=5.0), EPISODES.assign(target_return=-100.5)])
    frame.loc[frame.target_return == 5.0, "return"] += 1
    summaries = summarise_targets(frame, REFERENCES, 0)
    assert list(summaries) == ["5", "-100.5"]
    assert summaries["-100.5"] == summarise_method(EPISODES, REFERENCES, 0)
    assert summaries["5"]["mean"] == pytest.approx(summaries["-100.5"]["mean"] + 1)


def test_expert_scores_one_and_random_scores_zero() -> None:
    for value, score in (("expert_return", 1.0), ("random_return", 0.0)):
        rows = [(task, 0, getattr(record, value), False, 0.0, False) for task, record in REFERENCES.items()]
        frame = pd.DataFrame(rows, columns=EPISODES.columns)
        summary = summarise_method(frame, REFERENCES, seed=0)
        assert summary["normalised"] == pytest.approx(score)
        assert summary["failed_share"] == 1 - score
        assert summary["success"] == 0


def test_summary_does_not_depend_on_the_order_of_the_episodes() -> None:
    straight, reversed_ = (summarise_method(frame, REFERENCES, 0) for frame in (EPISODES, EPISODES.iloc[::-1]))
    assert straight.pop("per_task") == pytest.approx(reversed_.pop("per_task"))
    assert straight == pytest.approx(reversed_)


def test_interval_of_one_task_equals_the_percentile_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, 10.0, 15)
    low, high = bootstrap_interval({7: values}, seed=0)
    expected = bootstrap(
        (values,), np.mean, n_resamples=50_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    tolerance = 0.03 * (expected.high - expected.low)
    assert low == pytest.approx(expected.low, abs=tolerance)
    assert high == pytest.approx(expected.high, abs=tolerance)


def test_interval_of_several_tasks_resamples_prompts_within_each_task() -> None:
    rng = np.random.default_rng(1)
    tasks = {2: rng.normal(-20, 5, 12), 15: rng.normal(-200, 10, 6), 26: rng.normal(0, 1, 20)}
    means = []
    for _ in range(RESAMPLES):
        resampled = [[values[i] for i in rng.integers(0, len(values), len(values))] for values in tasks.values()]
        means.append(sum(sum(values) / len(values) for values in resampled) / len(tasks))
    expected_low, expected_high = np.percentile(means, [2.5, 97.5])
    low, high = bootstrap_interval(tasks, seed=0)
    tolerance = 0.06 * (expected_high - expected_low)
    assert low == pytest.approx(expected_low, abs=tolerance)
    assert high == pytest.approx(expected_high, abs=tolerance)


def test_same_seed_gives_the_same_interval() -> None:
    tasks = {7: np.random.default_rng(2).normal(size=9)}
    assert bootstrap_interval(tasks, seed=3) == bootstrap_interval(tasks, seed=3)
    assert bootstrap_interval(tasks, seed=3) != bootstrap_interval(tasks, seed=4)


def test_one_prompt_a_task_leaves_no_interval() -> None:
    assert bootstrap_interval({7: np.array([-3.0]), 2: np.array([-5.0])}, seed=0) == (-4.0, -4.0)


@pytest.mark.parametrize("name", ["prompts", "episodes_per_prompt"])
@pytest.mark.parametrize("value", [0, -1])
def test_protocol_refuses_an_empty_evaluation(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"evaluation\.{name} must be at least 1, got {value}"):
        ProtocolConfig(**{name: value})


@pytest.mark.parametrize("value", [0, -1])
def test_empty_few_shot_set_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=rf"few_shot\.episodes must be at least 1, got {value}"):
        ProtocolConfig(few_shot=FewShotConfig(episodes=value))
