"""Scores against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.manifest import TaskRecord
from promptdiffuser.evaluation.scores import (
    FLOORS,
    learned_something,
    reference_scores,
    summarise_method,
    summarise_targets,
)
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.references import reference_returns

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


def with_units(episodes: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the columns that say what is independent: no prompt is a copy, no start either."""
    number = episodes.groupby(["task", "prompt"]).cumcount()
    return episodes.assign(prompt_source=episodes["prompt"], episode=number, start=10 * episodes["prompt"] + number)


EPISODES = with_units(EPISODES)


def test_summary_equals_hand_numbers() -> None:
    summary = summarise_method(EPISODES, REFERENCES)
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
    assert (summary["unit"], summary["units"]) == ("prompt_source", 1)  # two prompts of task 2, one of task 26
    assert (summary["ci_low"], summary["ci_high"]) == (None, None)


def test_the_interval_counts_prompts_that_are_no_copies() -> None:
    """Means -10, -20 and -60 of one task; the prompts once more as copies of themselves change nothing."""
    rows = [(2, prompt, value, True, 1.0, False) for prompt, value in enumerate((-10.0, -20.0, -60.0))]
    once = with_units(pd.DataFrame(rows, columns=["task", "prompt", "return", "success", "seconds", "diverged"]))
    copies = once.assign(prompt=once["prompt"] + 3, start=once["start"] + 1)
    twice = summarise_method(pd.concat([once, copies]), REFERENCES)
    # Student with 2 degrees of freedom: 4.3027 standard errors of 26.458 / sqrt(3).
    assert (twice["ci_low"], twice["ci_high"]) == pytest.approx((-30 - 65.724, -30 + 65.724), abs=0.01)
    assert (twice["unit"], twice["units"]) == ("prompt_source", 3)


def test_episodes_without_a_return_are_left_out_of_means_counted_as_failed_and_reported() -> None:
    rows = [(2, 1, np.nan, False, 1.0, True), (26, 1, np.nan, False, 2.0, True)]
    lost = pd.DataFrame(rows, columns=["task", "prompt", "return", "success", "seconds", "diverged"])
    both = with_units(pd.concat([EPISODES, lost], ignore_index=True))
    summary, without = (summarise_method(frame, REFERENCES) for frame in (both, EPISODES))
    assert summary["diverged"] == 2
    assert summary["failed_share"] == pytest.approx(4 / 11)
    for key in ("mean", "normalised", "per_task", "ci_low", "ci_high"):
        assert summary[key] == pytest.approx(without[key], nan_ok=True)


def test_a_task_without_a_return_has_no_mean() -> None:
    lost = EPISODES.assign(**{"return": EPISODES["return"].mask(EPISODES.task == 2)}, diverged=EPISODES.task == 2)
    summary = summarise_method(lost, REFERENCES)
    assert np.isnan(summary["per_task"].get("2", np.nan))
    assert np.isnan(summary["mean"])
    assert summary["ci_low"] is None


def test_targets_are_summarised_apart_in_the_order_of_the_protocol() -> None:
    frame = pd.concat([EPISODES.assign(target_return=5.0), EPISODES.assign(target_return=-100.5)])
    frame.loc[frame.target_return == 5.0, "return"] += 1
    summaries = summarise_targets(frame, REFERENCES)
    assert list(summaries) == ["5", "-100.5"]
    assert repr(summaries["-100.5"]) == repr(summarise_method(EPISODES, REFERENCES))
    assert summaries["5"]["mean"] == pytest.approx(summaries["-100.5"]["mean"] + 1)


def test_expert_scores_one_and_random_scores_zero() -> None:
    for value, score in (("expert_return", 1.0), ("random_return", 0.0)):
        rows = [(task, 0, getattr(record, value), False, 0.0, False) for task, record in REFERENCES.items()]
        frame = pd.DataFrame(rows, columns=["task", "prompt", "return", "success", "seconds", "diverged"])
        summary = summarise_method(with_units(frame), REFERENCES)
        assert summary["normalised"] == pytest.approx(score)
        assert summary["failed_share"] == 1 - score
        assert summary["success"] == 0


def test_summary_does_not_depend_on_the_order_of_the_episodes() -> None:
    straight, reversed_ = (summarise_method(frame, REFERENCES) for frame in (EPISODES, EPISODES.iloc[::-1]))
    assert straight.pop("per_task") == pytest.approx(reversed_.pop("per_task"))
    assert straight == pytest.approx(reversed_, nan_ok=True)


@pytest.mark.parametrize("name", ["prompts", "episodes_per_prompt"])
@pytest.mark.parametrize("value", [0, -1])
def test_protocol_refuses_an_empty_evaluation(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"evaluation\.{name} must be at least 1, got {value}"):
        ProtocolConfig(**{name: value})


@pytest.mark.parametrize("value", [0, -1])
def test_empty_few_shot_set_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=rf"few_shot\.episodes must be at least 1, got {value}"):
        ProtocolConfig(few_shot=FewShotConfig(episodes=value))


def test_reference_policies_are_scored_as_methods_are() -> None:
    family = get_family("ant-dir")
    scores, references = reference_scores(family), reference_returns(family)
    assert list(scores) == ["random", "zero-action", "mean-action", "expert"]
    assert (scores["random"]["normalised"], scores["expert"]["normalised"]) == (0, 1)
    # As if zero actions were a method with an episode of each test task.
    episodes = with_units(
        pd.DataFrame(
            [(task, 0, references[task].zero_return, False, False, 0.0) for task in family.test_tasks],
            columns=["task", "prompt", "return", "success", "diverged", "seconds"],
        )
    )
    records = {
        task: TaskRecord(family.goal(task), references[task].random_return, references[task].expert_return)
        for task in family.test_tasks
    }
    summary = summarise_method(episodes, records)
    assert scores["zero-action"] == {name: pytest.approx(summary[name]) for name in ("mean", "normalised")}
    assert scores["zero-action"]["normalised"] == pytest.approx(0.31, abs=0.01)


@pytest.mark.parametrize("best_floor", FLOORS)
@pytest.mark.parametrize(
    ("result", "learned"),
    [
        ({"mean": 201.0, "ci_low": None}, True),
        ({"mean": 200.0, "ci_low": None}, False),
        ({"mean": 250.0, "ci_low": 201.0}, True),
        ({"mean": 250.0, "ci_low": 199.0}, False),
        ({"mean": np.nan, "ci_low": None}, False),
    ],
)
def test_a_method_has_learned_something_if_it_beats_what_ignores_observations(
    best_floor: str, result: dict[str, float], learned: bool
) -> None:
    references = {policy: {"mean": -50.0} for policy in FLOORS} | {best_floor: {"mean": 200.0}}
    assert learned_something(result, references | {"expert": {"mean": 1000.0}}) == learned
