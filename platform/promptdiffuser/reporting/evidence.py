"""The sections of the report that say how sure its numbers are, computed from the single episodes.

docs/statistics.md explains each number.
"""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import pandas as pd

from promptdiffuser.errors import UserError
from promptdiffuser.reporting import page
from promptdiffuser.reporting.figures import method_colours, method_label, method_order, performance_profiles
from promptdiffuser.reporting.verdicts import SHORT_UNITS, counted
from promptdiffuser.statistics.aggregates import (
    aggregate,
    interquartile_mean,
    optimality_gap,
    probability_of_improvement,
)
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.statistics.paired import PairedDifference, adjusted, paired_difference
from promptdiffuser.statistics.scores import Level, run_scores
from promptdiffuser.statistics.variance import LEVELS, variance_components

BASELINE = "prompt-dt"


def differences(episodes: pd.DataFrame) -> dict[str, PairedDifference]:
    """Return every method minus the baseline, in the order of the tables; nothing without a baseline.

    P-values are adjusted for the number of methods.
    """
    methods = method_order(list(episodes["method"].unique()))
    if BASELINE not in methods:
        return {}
    return adjusted({m: paired_difference(episodes, m, BASELINE) for m in methods if m != BASELINE})


def evidence(episodes: pd.DataFrame) -> dict[str, pd.DataFrame | str]:
    """Return the tables scores, differences and variance, or why one is not computed: every evaluation gets a report.

    Estimates have their 95 % bounds in columns of the same name with _low and _high.
    """
    return {
        name: _or_reason(table, episodes)
        for name, table in {"scores": _scores, "differences": _differences, "variance": _variance}.items()
    }


def scores_section(
    table: pd.DataFrame | str, episodes: pd.DataFrame, references: Mapping[str, Mapping[str, float]]
) -> str:
    """Return the interquartile means, optimality gaps, probabilities of improvement and performance profiles."""
    return page.section(
        "scores",
        "Normalised scores",
        page.caption(table) if isinstance(table, str) else _scores_html(table, episodes, references),
        "0 is the random policy, 1 the expert. The interquartile mean leaves out the worst and the best quarter of all "
        "prompts' scores; the optimality gap is the distance to the expert. The last column is the probability that "
        f"a prompt of the method scores higher than one of {method_label(BASELINE)} on the same task. A curve shows "
        "which share of a method's prompts scores above a value. Intervals are 95\u00a0%; they count different "
        "prompts, as copies of one prompt say nothing new, and are shown as – where there are too few.",
    )


def differences_section(table: pd.DataFrame | str) -> str:
    """Return how every method differs from the baseline on the same episodes."""
    return page.section(
        "differences",
        f"Return compared with {method_label(BASELINE)} on the same episodes",
        page.caption(table) if isinstance(table, str) else _differences_html(table),
        "Mean difference of episodes with equal task, prompt number and simulator seed, with two 95\u00a0% intervals "
        "of Student. On these tasks: the tasks are fixed, the units named in the table are random. On tasks like them: "
        "the tasks are random. A method is called better or worse from three trainings on; – is not known.",
    )


def variance_section(table: pd.DataFrame | str) -> str:
    """Return the variance components of every method."""
    return page.section(
        "variance",
        "Where the spread of the scores comes from",
        page.caption(table) if isinstance(table, str) else _variance_html(table),
        "Standard deviation of normalised scores between tasks, between prompts of a task and between episodes of a "
        "prompt, and the share of the variance. A negative estimate counts as zero; – is a level with one member.",
    )


def columns_of(name: str, interval: Interval) -> dict[str, float]:
    """Return the columns of an estimate in a table."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def interval_of(row: Mapping[str, float], name: str) -> Interval:
    """Return the estimate that a table has in its columns."""
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _units(level: Level | None, units: int) -> dict[str, Any]:
    return {"units": units, "over": counted(level, units, SHORT_UNITS)}


def _or_reason(table: Callable[[pd.DataFrame], pd.DataFrame], episodes: pd.DataFrame) -> pd.DataFrame | str:
    try:
        return table(episodes)
    except UserError as error:
        return f"Not computed: {error}."


def _scores(episodes: pd.DataFrame) -> pd.DataFrame:
    scores = run_scores(episodes)
    rows = {
        method: {
            **columns_of("interquartile_mean", aggregate(scores[method], interquartile_mean)),
            **columns_of("optimality_gap", aggregate(scores[method], optimality_gap)),
            **_units(scores[method].level, scores[method].num_units),
            **(
                columns_of("better_than_baseline", probability_of_improvement(scores[method], scores[BASELINE]))
                if BASELINE in scores and method != BASELINE
                else {}
            ),
        }
        for method in method_order(list(scores))
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _scores_html(table: pd.DataFrame, episodes: pd.DataFrame, references: Mapping[str, Mapping[str, float]]) -> str:
    colours = method_colours(list(table.index))
    rows = table.to_dict("index")
    pictures = page.whiskers(
        [interval_of(row, "interquartile_mean") for row in rows.values()], [colours[method] for method in rows]
    )
    compared = "better_than_baseline" in table
    best = table["interquartile_mean"].max()
    lines = [
        page.method_row(
            method,
            colours[method],
            [
                page.estimate(interval_of(row, "interquartile_mean"), 3),
                picture,
                page.estimate(interval_of(row, "optimality_gap"), 3),
                row["over"],
                *([_chance(method, row)] if compared else []),
            ],
            best=row["interquartile_mean"] == best,
        )
        for (method, row), picture in zip(rows.items(), pictures, strict=True)
    ]
    heads = ["Method", "Interquartile mean", "", "Optimality gap", "Over"]
    if compared:
        heads.append(f"Better than {method_label(BASELINE)}")
    figure = performance_profiles(run_scores(episodes), references)
    empty = [""] * (len(heads) - 2)
    lines += page.floor_rows(lambda policy: [page.number(references[policy]["normalised"], 3), *empty])
    return page.table("Normalised scores", heads, lines) + page.image(
        figure, "Curves: the share of each method's prompts that score above a value, with 95 % bands"
    )


def _chance(method: str, row: Mapping[str, float]) -> str:
    return "–" if method == BASELINE else page.estimate(interval_of(row, "better_than_baseline"))


def _differences(episodes: pd.DataFrame) -> pd.DataFrame:
    found = differences(episodes)
    if not found:
        if BASELINE in set(episodes["method"]):
            raise UserError(f"{BASELINE!r} is the only method, so there is nothing to compare with it")
        raise UserError(f"the experiment has no method {BASELINE!r} to compare with")
    rows = {
        method: {
            **columns_of("difference", paired.on_these_tasks),
            "low_on_tasks_like_these": paired.on_tasks_like_these.low,
            "high_on_tasks_like_these": paired.on_tasks_like_these.high,
            "tasks_better": paired.tasks_better,
            "tasks": paired.num_tasks,
            "pairs": paired.pairs,
            "unpaired": paired.unpaired,
            **_units(paired.level, paired.units),
            "trainings": paired.trainings,
            "p_value": paired.p_value,
            "verdict": paired.verdict,
        }
        for method, paired in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _differences_html(table: pd.DataFrame) -> str:
    colours = method_colours(list(table.index))
    rows = [
        page.method_row(
            method,
            colours[method],
            [
                page.number(row["difference"]),
                page.bounds(interval_of(row, "difference")),
                page.bounds(
                    Interval(row["difference"], row["low_on_tasks_like_these"], row["high_on_tasks_like_these"])
                ),
                f"{row['tasks_better']} of {row['tasks']}",
                row["over"],
                row["verdict"],
            ],
        )
        for method, row in table.to_dict("index").items()
    ]
    heads = ("Method", "Difference", "On these tasks", "On tasks like them", "Tasks better", "Over", "Verdict")
    return page.table("Paired differences", heads, rows)


def _variance(episodes: pd.DataFrame) -> pd.DataFrame:
    methods = method_order(list(episodes["method"].unique()))
    return pd.concat({method: variance_components(episodes, method) for method in methods}, names=["method"])


def _variance_html(table: pd.DataFrame) -> str:
    methods = list(table.index.unique("method"))
    colours = method_colours(methods)
    levels = [level for level in LEVELS if level in table.index.unique("level")]
    rows = [
        page.method_row(
            method,
            colours[method],
            [
                "–"
                if pd.isna(row.variance)
                else f'{sqrt(max(row.variance, 0.0)):.3f} <span class="interval">{page.percent(row.share, 0)}</span>'
                for row in table.loc[method].reindex(levels).itertuples()
            ],
        )
        for method in methods
    ]
    return page.table("Variance components", ("Method", *(level.capitalize() for level in levels)), rows)
