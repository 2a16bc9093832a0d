"""The page of a benchmark: which way of making a prompt adapts best, at what cost, and how sure that is.

`jobs/benchmark.py` writes it beside its tables; in a script: `write_page`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import nothing_learned, reference_scores
from promptdiffuser.reporting import page
from promptdiffuser.reporting.benchmark import CELL, NO_PAIRS, REFERENCE, Cell, by_cell, cell_difference
from promptdiffuser.reporting.evidence import floor_rows, interval_of, panel
from promptdiffuser.reporting.figures import forest, return_by_size, value_for_cost
from promptdiffuser.statistics.intervals import LEAST_UNITS
from promptdiffuser.statistics.paired import adjusted
from promptdiffuser.statistics.pareto import on_front
from promptdiffuser.tasks.family import TaskFamily

_REFERENCE_COLOUR = "#d55e00"
_NAMED = 8
"""More names than this make no sentence."""
_VERDICTS = {
    "better": "better than it",
    "worse": "worse",
    "equal": "equal to it in every episode",
    "undecided": "without a significant difference",
    "constant": "with the same difference in every seed",
    "too few trainings": "with too few seeds for a verdict",
    NO_PAIRS: "without pairs on every task and seed",
}
_LEAST_SECONDS = 0.1
"""Whatever adapts faster is drawn here; the axis is logarithmic."""
_MANY_LINES = 12
"""Most lines in the figure of returns by few-shot size; of more methods, only the best are drawn."""


def write_page(folder: Path, title: str, facts: Mapping[str, object], reference: str, family: TaskFamily) -> Path:
    """Write index.html beside the tables that `reporting.benchmark.write_tables` wrote, and return its path."""
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("table", "per_task", "episodes")}
    path = folder / "index.html"
    path.write_text(render(title, facts, **tables, reference=reference, family=family), encoding="utf-8")
    return path


def render(
    title: str,
    facts: Mapping[str, object],
    table: pd.DataFrame,
    per_task: pd.DataFrame,
    episodes: pd.DataFrame,
    reference: str,
    family: TaskFamily,
) -> str:
    """Return the page as HTML text.

    Args:
        title: Name of the benchmark and its family.
        facts: What makes the numbers repeatable: command, dataset and the like.
        table: What `promptdiffuser.reporting.benchmark.table` returns.
        per_task: What `promptdiffuser.reporting.benchmark.per_task` returns.
        episodes: See `promptdiffuser.reporting.benchmark.by_cell`.
        reference: Method that the table's differences are from.
        family: Task family. Its zero-action and mean-action policies are shown beside the methods.
    """
    tasks = [column for column in per_task if column not in CELL]
    references = reference_scores(family)
    floors = floor_rows(references, family, {int(task): task for task in tasks})
    named = table.assign(name=_names(table)).set_index("name", drop=False).rename_axis("Method")
    best = named.groupby("name")["return"].max().nlargest(_MANY_LINES).index
    by_task = per_task.assign(mean=per_task[tasks].mean(axis=1), Method=_names(per_task)).set_index("Method")
    return page.render(
        "benchmark.html",
        title=title,
        facts=facts,
        reference=reference,
        conclusions=conclusions(table, episodes, references),
        over_sizes=return_by_size(named[named["name"].isin(best)], floors["return"]),
        drawn=len(best),
        names=named["name"].nunique(),
        sizes={size: _of_size_shown(rows, reference, floors) for size, rows in named.groupby("few_shot_episodes")},
        floors=floors,
        tasks=tasks,
        by_task=by_task.sort_values(["few_shot_episodes", "mean"], ascending=[True, False]),
    )


def _of_size_shown(rows: pd.DataFrame, reference: str, floors: pd.DataFrame) -> dict[str, Any]:
    """Return what is shown of the few-shot sets of one size: rows, figures and the names on the front."""
    panels = {"Mean return": panel(rows, "return"), f"Minus {reference}": panel(rows, "difference")}
    colours = dict.fromkeys(rows["name"][rows["verdict"] == REFERENCE], _REFERENCE_COLOUR)
    drawn = rows.assign(adapt_s=rows["adapt_s"].clip(lower=_LEAST_SECONDS))
    axes = ("seconds of one core to adapt to all test tasks", "mean return")
    return {
        "rows": rows,
        "forest": forest(panels, floors[["return"]].rename(columns={"return": "Mean return"}), colours),
        "cost": value_for_cost(drawn, "adapt_s", "return", axes, floors["return"]),
        "front": ", ".join(rows["name"][on_front(rows, "adapt_s", "return")]),
    }


def conclusions(
    table: pd.DataFrame, episodes: pd.DataFrame, references: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Return sentences computed from the numbers: what they show, and where they stop."""
    cells = by_cell(episodes)
    several = table["few_shot_episodes"].nunique() > 1
    sentences = [
        (f"{size} few-shot episodes: " if several else "") + sentence
        for size, rows in table.assign(name=_names(table)).groupby("few_shot_episodes")
        for sentence in (*_of_size(rows, cells), *nothing_learned(_results(rows), references))
    ]
    return [
        *sentences,
        "All seeds share one backbone and these test tasks: the intervals do not cover other backbones or other tasks. "
        "P-values are adjusted for the number of differences by Holm's method.",
    ]


def _of_size(rows: pd.DataFrame, cells: Mapping[Cell, pd.DataFrame]) -> Iterator[str]:
    best = rows.iloc[0]
    seeds = f"{best['seeds']} seeds" if best["seeds"] > 1 else "one seed"
    yield (
        f"Of {len(rows)} methods, {best['name']} has the highest mean return: {page.number(best['return'], 1)} "
        f"{page.bounds(interval_of(best, 'return'), ',.1f')} over {seeds}."
    )
    if len(rows) > 1:
        yield _rivals(rows, cells)
    compared = rows[rows["verdict"] != REFERENCE]
    if len(compared):
        counts = compared["verdict"].value_counts()
        yield (
            f"Compared with the reference, {len(compared)} in all: "
            + ", ".join(f"{counts[verdict]} {words}" for verdict, words in _VERDICTS.items() if verdict in counts)
            + "."
        )
    undecided = compared[compared["verdict"] == "undecided"]
    if len(undecided):
        yield _worst_cases(undecided)


def _worst_cases(undecided: pd.DataFrame) -> str:
    """Return how far methods without a significant difference from the reference could be from it."""
    lowest = undecided.loc[undecided["difference_low"].idxmin()]
    highest = undecided.loc[undecided["difference_high"].idxmax()]
    ways = []
    if lowest["difference_low"] < 0:
        ways.append(f"{page.number(-lowest['difference_low'], 1)} below the reference ({lowest['name']})")
    if highest["difference_high"] > 0:
        ways.append(f"{page.number(highest['difference_high'], 1)} above the reference ({highest['name']})")
    return (
        "No significant difference does not mean equal: by the ends of the intervals, which are not adjusted, one of "
        f"these could be {' and one '.join(ways)}."
    )


def _results(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return name -> mean return and the lower end of its interval, None where that is not known."""
    return {
        row["name"]: {"mean": row["return"], "ci_low": None if pd.isna(row["return_low"]) else row["return_low"]}
        for row in rows.to_dict("records")
    }


def _rivals(rows: pd.DataFrame, cells: Mapping[Cell, pd.DataFrame]) -> str:
    """Return which methods are not shown to be worse than the best one, and how much worse they could be."""
    first, *others = (cells[tuple(cell)] for cell in rows[CELL].to_numpy())
    try:
        behind = adjusted({number: cell_difference(first, other) for number, other in enumerate(others)})
    except UserError as error:
        return f"It is not compared with the others: {error}."
    verdicts = [paired.verdict for paired in behind.values()]
    if "too few trainings" in verdicts:
        return f"Seeds are too few to say which others it is better than ({rows['seeds'].min()} of {LEAST_UNITS})."
    rivals = rows.iloc[1:].assign(most=[paired.on_these_tasks.high for paired in behind.values()])
    rivals = rivals[[verdict in ("undecided", "equal") for verdict in verdicts]]
    if rivals.empty:
        constant = verdicts.count("constant")
        same = f" ({constant} by the same difference in every seed)" if constant else ""
        return f"On equal seeds it is better than all {len(others)} others{same}."
    cheapest = rivals.loc[rivals["adapt_s"].idxmin()]
    names = f": {', '.join(rivals['name'])}" if len(rivals) <= _NAMED else ""
    most = "" if pd.isna(cheapest["most"]) else f"; its return could be up to {page.number(cheapest['most'], 1)} lower"
    return (
        f"On equal seeds {len(rivals)} of the other {len(others)} are not significantly worse{names}. Of these "
        f"{cheapest['name']} is the cheapest, {page.number(cheapest['adapt_s'], 1)} s for all tasks (the best takes "
        f"{page.number(rows.iloc[0]['adapt_s'], 1)} s){most}."
    )


def _names(rows: pd.DataFrame) -> pd.Series:
    """Return what tells the rows apart: method, arm, or both."""
    several_arms, several_methods = rows["arm"].nunique() > 1, rows["method"].nunique() > 1
    if not several_arms:
        return rows["method"]
    return rows["arm"] + " " + rows["method"] if several_methods else rows["arm"]
