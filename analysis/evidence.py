"""The sections of the report that say how sure its numbers are, computed from the single episodes.

docs/statistics.md explains each number.
"""

from collections.abc import Callable, Mapping
from math import sqrt

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import page
from analysis.aggregates import interquartile_mean, optimality_gap, probability_of_improvement
from analysis.figures import method_colours, method_label, method_order, performance_profiles
from analysis.intervals import bootstrap
from analysis.pairs import PairedDifference, paired_difference
from analysis.scores import run_scores
from analysis.variance import variance_components
from promptdiffuser.errors import UserError

BASELINE = "prompt-dt"
UNITS = {"training_seed": "trainings", "prompt": "prompts", "episode": "episodes", None: "nothing"}


def differences(episodes: pd.DataFrame) -> dict[str, PairedDifference]:
    """Return every method minus the baseline, in the order of the tables; nothing without a baseline."""
    methods = method_order(list(episodes["method"].unique()))
    if BASELINE not in methods:
        return {}
    return {method: paired_difference(episodes, method, BASELINE) for method in methods if method != BASELINE}


def scores_section(episodes: pd.DataFrame) -> str:
    """Return the interquartile means, optimality gaps, probabilities of improvement and performance profiles."""
    return page.section(
        "scores",
        "Normalised scores",
        _or_reason(_scores, episodes),
        "0 is the random policy, 1 the expert. The interquartile mean leaves out the worst and the best quarter of all "
        "prompts' scores; the optimality gap is what is missing to the expert. The last column is the probability that "
        f"a prompt of the method scores higher than one of {method_label(BASELINE)} on the same task. A curve shows "
        "which share of a method's prompts scores above a value. Intervals and bands are 95\u00a0%, prompts resampled "
        "within each task.",
    )


def differences_section(episodes: pd.DataFrame) -> str:
    """Return how every method differs from the baseline on the same episodes."""
    return page.section(
        "differences",
        f"Return compared with {method_label(BASELINE)} on the same episodes",
        _or_reason(_differences, episodes),
        "Mean difference of episodes with equal task, prompt number and simulator seed, with two 95\u00a0% intervals. "
        "On these tasks: prompts are resampled with their episodes. On tasks like them: tasks are resampled.",
    )


def variance_section(episodes: pd.DataFrame) -> str:
    """Return the variance components of every method."""
    return page.section(
        "variance",
        "Where the spread of the scores comes from",
        _or_reason(_variance, episodes),
        "Standard deviation of normalised scores between tasks, between prompts of a task and between episodes of a "
        "prompt, and the share of the variance. A component that drowns in the one below it counts as zero.",
    )


def _or_reason(body: Callable[[pd.DataFrame], str], episodes: pd.DataFrame) -> str:
    """Return what a section shows, or why it shows nothing: a report has to come out of every evaluation."""
    try:
        return body(episodes)
    except UserError as error:
        return page.caption(f"Not computed: {error}.")


def _scores(episodes: pd.DataFrame) -> str:
    scores: Mapping[str, NDArray[np.float64]] = run_scores(episodes)
    methods = method_order(list(scores))
    colours = method_colours(methods)
    middles = [bootstrap(scores[method], interquartile_mean) for method in methods]
    pictures = page.whiskers(middles, [colours[method] for method in methods])
    best = max(interval.estimate for interval in middles)
    rows = [
        page.method_row(
            method,
            colours[method],
            [
                page.estimate(middle, 3),
                picture,
                page.estimate(bootstrap(scores[method], optimality_gap), 3),
                *([_chance(method, scores)] if BASELINE in scores else []),
            ],
            best=middle.estimate == best,
        )
        for method, middle, picture in zip(methods, middles, pictures, strict=True)
    ]
    heads = ["Method", "Interquartile mean", "", "Optimality gap"]
    if BASELINE in scores:
        heads.append(f"Better than {method_label(BASELINE)}")
    figure = performance_profiles(scores)
    return page.table(heads, rows) + page.image(figure, "Share of each method's prompts that score above a value")


def _chance(method: str, scores: Mapping[str, NDArray[np.float64]]) -> str:
    return "–" if method == BASELINE else page.estimate(probability_of_improvement(scores[method], scores[BASELINE]))


def _differences(episodes: pd.DataFrame) -> str:
    found = differences(episodes)
    if not found:
        raise UserError(f"the experiment has no method {BASELINE!r} to compare with")
    colours = method_colours(list(found))
    rows = [
        page.method_row(
            method,
            colours[method],
            [
                page.number(paired.on_these_tasks.estimate),
                page.bounds(paired.on_these_tasks),
                page.bounds(paired.on_tasks_like_these),
                f"{paired.tasks_better} of {paired.num_tasks}",
            ],
        )
        for method, paired in found.items()
    ]
    return page.table(("Method", "Difference", "On these tasks", "On tasks like them", "Tasks better"), rows)


def _variance(episodes: pd.DataFrame) -> str:
    methods = method_order(list(episodes["method"].unique()))
    colours = method_colours(methods)
    components = {method: variance_components(episodes, method) for method in methods}
    levels = list(next(iter(components.values())).index)
    rows = [
        page.method_row(
            method,
            colours[method],
            [
                f'{sqrt(max(row.variance, 0.0)):.3f} <span class="interval">{page.percent(row.share, 0)}</span>'
                for row in components[method].loc[levels].itertuples()
            ],
        )
        for method in methods
    ]
    return page.table(("Method", *(level.capitalize() for level in levels)), rows)
