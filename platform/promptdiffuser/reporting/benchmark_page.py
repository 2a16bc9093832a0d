"""The page of a benchmark: which way of making a prompt adapts best, at what cost, and how sure that is.

`jobs/benchmark.py` writes it beside its tables; in a script: `write_page`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import nothing_learned, reference_scores, reference_task_returns
from promptdiffuser.reporting import page
from promptdiffuser.reporting.benchmark import CELL, NO_PAIRS, REFERENCE, Cell, by_cell, cell_difference
from promptdiffuser.reporting.benchmark_figures import return_by_size, return_for_cost
from promptdiffuser.reporting.evidence import interval_of
from promptdiffuser.statistics.intervals import LEAST_UNITS
from promptdiffuser.statistics.paired import adjusted
from promptdiffuser.statistics.pareto import on_front
from promptdiffuser.tasks.family import TaskFamily

QUESTION = "Which way of making a prompt adapts the frozen policy best, at what cost, and how sure are we?"
_DOT, _REFERENCE_DOT = "#0072b2", "#d55e00"
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
    named = table.assign(name=_names(table))
    floors = reference_scores(family)
    sentences = conclusions(table, episodes, floors)
    sections = [page.section("conclusions", "What the numbers allow", page.listing(sentences))]
    sizes = named.groupby("few_shot_episodes")
    if len(sizes) > 1:
        sections.append(_over_sizes(named, floors))
    for size, rows in sizes:
        sections.append(_costs(size, rows, floors))
        sections.append(_returns(size, rows, reference, floors))
    sections += [
        _tasks(per_task, reference_task_returns(family)),
        page.section("facts", "How it was measured", page.facts(facts)),
    ]
    return page.whole(title, QUESTION, sections)


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
        f"{page.bounds(interval_of(best, 'return'), 1)} over {seeds}."
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


def _costs(size: Any, rows: pd.DataFrame, references: Mapping[str, Mapping[str, float]]) -> str:
    front = rows[on_front(rows, "adapt_s", "return")]
    alt = "Points with intervals: mean return by seconds of adapting; a line joins those that no cheaper one beats: "
    return page.section(
        f"cost-{size}",
        f"Return for cost, {size} few-shot episodes",
        page.image(return_for_cost(rows, references), alt + ", ".join(front["name"])),
        "Left all, right the better half. Costs of training backbones and diffusers on the training tasks are not "
        "in it: they are paid once for all target tasks.",
    )


def _returns(size: Any, rows: pd.DataFrame, reference: str, references: Mapping[str, Mapping[str, float]]) -> str:
    records = rows.to_dict("records")
    colours = [_REFERENCE_DOT if row["method"] == reference and pd.isna(row["difference"]) else _DOT for row in records]
    pictures = page.whiskers([interval_of(row, "return") for row in records], colours)
    lines = [
        page.method_row(
            row["name"],
            colour,
            (
                page.estimate(interval_of(row, "return"), 1),
                picture,
                page.number(row["normalised"], 3),
                "" if row["verdict"] == REFERENCE else page.estimate(interval_of(row, "difference"), 1),
                row["verdict"],
                page.percent(row["failed_share"]),
                page.number(row["tunable"], 0),
                page.number(row["updates"], 0),
                page.number(row["episodes"], 0),
                page.number(row["adapt_s"], 1),
                page.number(row["memory_gib"], 2),
            ),
            best=number == 0,
        )
        for number, (row, colour, picture) in enumerate(zip(records, colours, pictures, strict=True))
    ]
    heads = (
        *("Method", "Mean return", "", "Normalised", f"Minus {reference}", "Verdict", "Failed episodes"),
        *("Numbers tuned", "Updates", "Episodes played", "Seconds", "Memory, GiB"),
    )
    empty = [""] * (len(heads) - 4)
    lines += page.floor_rows(
        lambda policy: (
            page.number(references[policy]["mean"], 1),
            "",
            page.number(references[policy]["normalised"], 3),
            *empty,
        )
    )
    return page.section(
        f"returns-{size}",
        f"Returns and costs, {size} few-shot episodes, one backbone",
        page.table("Returns and costs", heads, lines),
        "95\u00a0% intervals of Student over seeds (few-shot draw, trainings and start states; the backbone is one for "
        "all); – means fewer than three. Differences compare equal seeds. Numbers, updates and episodes are of one "
        "task, seconds of one core of all test tasks; memory is that of the process.",
    )


def _tasks(per_task: pd.DataFrame, references: Mapping[str, Mapping[int, float]]) -> str:
    tasks = [column for column in per_task if column not in CELL]
    named = per_task.assign(name=_names(per_task), mean=per_task[tasks].mean(axis=1))
    ordered = named.sort_values(["few_shot_episodes", "mean"], ascending=[True, False])
    rows = [
        page.row(page.text(row["name"]), (row["few_shot_episodes"], *(page.number(row[task], 1) for task in tasks)))
        for row in ordered.to_dict("records")
    ]
    rows += page.floor_rows(lambda policy: ("", *(page.number(references[policy][int(task)], 1) for task in tasks)))
    heads = ("Method", "Few-shot episodes", *(f"Task {task}" for task in tasks))
    return page.section("tasks", "Mean return by task", page.table("Mean return by task", heads, rows))


def _over_sizes(rows: pd.DataFrame, references: Mapping[str, Mapping[str, float]]) -> str:
    best = rows.groupby("name")["return"].max().nlargest(_MANY_LINES).index
    figure = return_by_size(rows[rows["name"].isin(best)], references)
    note = f"The best {_MANY_LINES} of {rows['name'].nunique()}." if rows["name"].nunique() > _MANY_LINES else ""
    return page.section(
        "sizes",
        "Return by size of the few-shot set",
        page.image(figure, "Lines: mean return by number of few-shot episodes, with intervals"),
        note,
    )
