"""How certain the numbers of an experiment are, computed from single episodes; docs/statistics.md explains each number.

An estimate has its 95 % bounds in columns of the same name with _low and _high.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import reference_task_returns
from promptdiffuser.reporting import page
from promptdiffuser.reporting.figures import COLOURS, FLOOR_LABELS, forest, method_colours, method_order
from promptdiffuser.reporting.verdicts import SHORT_UNITS, counted
from promptdiffuser.statistics.aggregates import (
    aggregate,
    interquartile_mean,
    optimality_gap,
    probability_of_improvement,
)
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.statistics.paired import PairedDifference, adjusted, mean_return, paired_difference
from promptdiffuser.statistics.scores import Runs, run_scores
from promptdiffuser.statistics.variance import LEVELS, variance_components
from promptdiffuser.tasks.family import TaskFamily

BASELINE = "prompt-dt"
MOST_PANELS = 10
"""With more tasks than this, the forest plot has no panel for each of them."""


def differences(episodes: pd.DataFrame) -> dict[str, PairedDifference]:
    """Return every method minus the baseline, in the order of the tables; nothing without a baseline.

    P-values are adjusted for the number of methods.
    """
    methods = method_order(list(episodes["method"].unique()))
    if BASELINE not in methods:
        return {}
    return adjusted({m: paired_difference(episodes, m, BASELINE) for m in methods if m != BASELINE})


def evidence(episodes: pd.DataFrame) -> dict[str, pd.DataFrame | str]:
    """Return the tables scores, differences and variance, each a frame or the reason why it is not computed."""
    return {
        name: _or_reason(table, episodes)
        for name, table in {"scores": _scores, "differences": _differences, "variance": _variance}.items()
    }


def _or_reason(table: Callable[[pd.DataFrame], pd.DataFrame], episodes: pd.DataFrame) -> pd.DataFrame | str:
    try:
        return table(episodes)
    except UserError as error:
        return f"Not computed: {error}."


def columns_of(name: str, interval: Interval) -> dict[str, float]:
    """Return the columns of an estimate in a table."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def interval_of(row: Mapping[str, float], name: str) -> Interval:
    """Return the estimate that a table has in its columns."""
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def columns_of_pair(paired: PairedDifference) -> dict[str, Any]:
    """Return the columns of a paired difference in a table."""
    return {
        **columns_of("difference", paired.on_these_tasks),
        "low_on_tasks_like_these": paired.on_tasks_like_these.low,
        "high_on_tasks_like_these": paired.on_tasks_like_these.high,
        "tasks_better": paired.tasks_better,
        "tasks": paired.num_tasks,
        "pairs": paired.pairs,
        "unpaired": paired.unpaired,
        "units": paired.units,
        "over": counted(paired.level, paired.units, SHORT_UNITS),
        "trainings": paired.trainings,
        "p_value": paired.p_value,
        "verdict": paired.verdict,
    }


def _scores(episodes: pd.DataFrame) -> pd.DataFrame:
    scores = run_scores(episodes)
    rows = {
        method: {
            **columns_of("interquartile_mean", aggregate(scores[method], interquartile_mean)),
            **columns_of("optimality_gap", aggregate(scores[method], optimality_gap)),
            "units": scores[method].num_units,
            "over": counted(scores[method].level, scores[method].num_units, SHORT_UNITS),
            **(
                columns_of("better_than_baseline", probability_of_improvement(scores[method], scores[BASELINE]))
                if BASELINE in scores and method != BASELINE
                else {}
            ),
        }
        for method in method_order(list(scores))
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _differences(episodes: pd.DataFrame) -> pd.DataFrame:
    found = differences(episodes)
    if not found:
        if BASELINE in set(episodes["method"]):
            raise UserError(f"{BASELINE!r} is the only method, so there is nothing to compare with it")
        raise UserError(f"the experiment has no method {BASELINE!r} to compare with")
    rows = {method: columns_of_pair(paired) for method, paired in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _variance(episodes: pd.DataFrame) -> pd.DataFrame:
    methods = method_order(list(episodes["method"].unique()))
    return pd.concat({method: variance_components(episodes, method) for method in methods}, names=["method"])


def shown_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Return paired differences with the columns in which a page words them."""
    like_these = table[["difference", "low_on_tasks_like_these", "high_on_tasks_like_these"]]
    return table.assign(
        like_these=[page.bounds(Interval(*row)) for row in like_these.itertuples(index=False)],
        better=table["tasks_better"].astype(str) + " of " + table["tasks"].astype(str),
    )


def shown_variance(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method and one column per level: the standard deviation and the share of the variance."""
    deviation = np.sqrt(table["variance"].clip(lower=0)).map("{:.3f}".format)
    cells = (deviation + " (" + table["share"].map("{:.0%}".format) + ")").where(table["variance"].notna(), "–")
    levels = [level for level in LEVELS if level in cells.index.unique("level")]
    wide = cells.unstack("level", fill_value="–").reindex(index=cells.index.unique("method"), columns=levels)
    return wide.rename(columns=str.capitalize)


def best_scores(episodes: pd.DataFrame, table: pd.DataFrame) -> dict[str, Runs]:
    """Return the scores of as many methods as a figure has colours for, the best ones by interquartile mean."""
    best = table["interquartile_mean"].nlargest(len(COLOURS)).index
    return {method: scores for method, scores in run_scores(episodes).items() if method in best}


def floor_rows(
    references: Mapping[str, Mapping[str, float]], family: TaskFamily, titles: Mapping[int, str]
) -> pd.DataFrame:
    """Return the rows of the policies that ignore their observations: return, normalised, and the return on each task.

    Args:
        references: As `evaluation.scores.reference_scores` returns them.
        family: Task family.
        titles: Task -> name of its column.
    """
    of_tasks = pd.DataFrame(reference_task_returns(family)).T.reindex(columns=list(titles)).rename(columns=titles)
    scores = pd.DataFrame(references).T.rename(columns={"mean": "return"})
    return scores.join(of_tasks).loc[list(FLOOR_LABELS)]


def returns_forest(
    returns: pd.DataFrame,
    scores: pd.DataFrame | None,
    episodes: pd.DataFrame,
    titles: Mapping[int, str],
    floors: pd.DataFrame,
) -> Figure:
    """Draw one row per method: its mean return, its interquartile mean and, of not too many tasks, its return on each.

    Args:
        returns: Mean return of each method.
        scores: Interquartile mean of each method, if known.
        episodes: One row per episode.
        titles: Task -> title of its panel.
        floors: See `floor_rows`.
    """
    panels = {"Mean return": panel(returns, "return")}
    if scores is not None:
        panels["Interquartile mean"] = panel(scores, "interquartile_mean")
    for task, title in titles.items() if len(titles) <= MOST_PANELS else ():
        found = {
            method: columns_of("return", mean_return(own))
            for method, own in episodes[episodes["task"] == task].groupby("method")
        }
        panels[title] = panel(pd.DataFrame.from_dict(found, orient="index"), "return")
    named = floors.rename(columns={"return": "Mean return", "normalised": "Interquartile mean"})
    return forest(panels, named, method_colours(list(returns.index)))


def panel(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return an estimate with its bounds as a panel of a forest plot."""
    return rows[[name, f"{name}_low", f"{name}_high"]].set_axis(["estimate", "low", "high"], axis=1)
