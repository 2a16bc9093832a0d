"""The page of a benchmark: which way of making a prompt adapts best, at what cost, and how sure that is.

`jobs/benchmark.py` writes it beside its tables; in a script: `write_page`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import page
from analysis.benchmark import CELL, by_cell, paired_difference, seed_returns
from analysis.benchmark_figures import return_by_size, return_for_cost
from analysis.evidence import interval_of
from promptdiffuser.statistics.pareto import on_front

QUESTION = "Which way of making a prompt adapts the frozen policy best, at what cost, and how sure are we?"
_DOT, _REFERENCE_DOT = "#0072b2", "#d55e00"
_NAMED = 8
"""More names than this make no sentence."""
_MANY_LINES = 12
"""More lines than this in the figure over sizes of the few-shot set tell nothing apart; the best are drawn."""


def write_page(folder: Path, title: str, facts: Mapping[str, object], reference: str) -> Path:
    """Write index.html beside the tables that `analysis.benchmark.write_tables` wrote, and return its path."""
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("table", "per_task", "episodes")}
    path = folder / "index.html"
    path.write_text(render(title, facts, **tables, reference=reference), encoding="utf-8")
    return path


def render(
    title: str,
    facts: Mapping[str, object],
    table: pd.DataFrame,
    per_task: pd.DataFrame,
    episodes: pd.DataFrame,
    reference: str,
) -> str:
    """Return the page as HTML text.

    Args:
        title: Name of the benchmark and its family.
        facts: What makes the numbers repeatable: command, dataset and the like.
        table: What `analysis.benchmark.table` returns.
        per_task: What `analysis.benchmark.per_task` returns.
        episodes: See `analysis.benchmark.seed_returns`.
        reference: Method that the table's differences are from.
    """
    named = table.assign(name=_names(table))
    sections = [page.section("conclusions", "What the numbers allow", page.listing(conclusions(table, episodes)))]
    sizes = named.groupby("few_shot_episodes")
    if len(sizes) > 1:
        sections.append(_over_sizes(named))
    for size, rows in sizes:
        sections.append(_costs(size, rows))
        sections.append(_returns(size, rows, reference))
    sections += [_tasks(per_task), page.section("facts", "How it was measured", page.facts(facts))]
    return page.whole(title, QUESTION, sections)


def conclusions(table: pd.DataFrame, episodes: pd.DataFrame) -> list[str]:
    """Return sentences computed from the numbers: what they show, and where they stop."""
    returns_of = by_cell(seed_returns(episodes))
    several = table["few_shot_episodes"].nunique() > 1
    sentences = [
        (f"{size} few-shot episodes: " if several else "") + sentence
        for size, rows in table.assign(name=_names(table)).groupby("few_shot_episodes")
        for sentence in _of_size(rows, returns_of)
    ]
    return [
        *sentences,
        "The tasks are these test tasks alone; intervals are over seeds. Of many differences that are nothing, one in "
        "twenty is told apart by chance.",
    ]


def _of_size(rows: pd.DataFrame, returns_of: Mapping[tuple[str, int, str], pd.Series]) -> Iterator[str]:
    best = rows.iloc[0]
    yield (
        f"{best['name']} has the highest mean return of {len(rows)}: {page.number(best['return'], 1)} "
        f"{page.bounds(interval_of(best, 'return'), 1)} over {best['seeds']} seeds."
        if best["seeds"] > 1
        else f"{best['name']} has the highest mean return of {len(rows)}, {page.number(best['return'], 1)}, over one "
        "seed: nothing is known of its interval, and no two are told apart."
    )
    first, *others = (returns_of[tuple(cell)] for cell in rows[CELL].to_numpy())
    is_level = [not paired_difference(first, other).low > 0 for other in others]
    level = rows.iloc[1:][is_level]
    if len(level):
        cheapest = level.loc[level["adapt_s"].idxmin()]
        yield (
            f"On equal seeds {len(level)} of the other {len(others)} are not told apart from it"
            f"{': ' + ', '.join(level['name']) if len(level) <= _NAMED else ''}. Of these {cheapest['name']} is the "
            f"cheapest: {page.number(cheapest['adapt_s'], 1)} s for all tasks, the best takes "
            f"{page.number(best['adapt_s'], 1)} s."
        )
    elif others:
        yield f"On equal seeds it is ahead of all {len(others)} others."
    compared = rows.dropna(subset=["difference_low"])
    if len(compared):
        ahead, after = (compared["difference_low"] > 0).sum(), (compared["difference_high"] < 0).sum()
        yield (
            f"Of {len(compared)} compared with the reference, {ahead} are ahead of it, {after} behind, "
            f"{len(compared) - ahead - after} not told apart."
        )


def _names(rows: pd.DataFrame) -> pd.Series:
    """Return what tells the rows apart: method, arm, or both."""
    several_arms, several_methods = rows["arm"].nunique() > 1, rows["method"].nunique() > 1
    if not several_arms:
        return rows["method"]
    return rows["arm"] + " " + rows["method"] if several_methods else rows["arm"]


def _costs(size: Any, rows: pd.DataFrame) -> str:
    front = rows[on_front(rows, "adapt_s", "return")]
    alt = "Points with intervals: mean return by seconds of adapting; a line joins those that no cheaper one beats: "
    return page.section(
        f"cost-{size}",
        f"Return for cost, {size} few-shot episodes",
        page.image(return_for_cost(rows), alt + ", ".join(front["name"])),
        "Left all, right the better half. Costs of training backbones and diffusers on the training tasks are not "
        "in it: they are paid once for all target tasks.",
    )


def _returns(size: Any, rows: pd.DataFrame, reference: str) -> str:
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
                "" if pd.isna(row["difference"]) else page.estimate(interval_of(row, "difference"), 1),
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
    heads = ("Method", "Mean return", "", "Normalised", f"Minus {reference}", "Failed episodes")
    heads += ("Numbers tuned", "Updates", "Episodes played", "Seconds", "Memory, GiB")
    return page.section(
        f"returns-{size}",
        f"Returns and costs, {size} few-shot episodes",
        page.table("Returns and costs", heads, lines),
        "95\u00a0% intervals of Student over seeds; differences on equal seeds. Numbers, updates and episodes are of "
        "one task, seconds of one core of all test tasks; memory is that of the process.",
    )


def _tasks(per_task: pd.DataFrame) -> str:
    tasks = [column for column in per_task if column not in CELL]
    named = per_task.assign(name=_names(per_task), mean=per_task[tasks].mean(axis=1))
    ordered = named.sort_values(["few_shot_episodes", "mean"], ascending=[True, False])
    rows = [
        page.row(page.text(row["name"]), (row["few_shot_episodes"], *(page.number(row[task], 1) for task in tasks)))
        for row in ordered.to_dict("records")
    ]
    heads = ("Method", "Few-shot episodes", *(f"Task {task}" for task in tasks))
    return page.section("tasks", "Mean return by task", page.table("Mean return by task", heads, rows))


def _over_sizes(rows: pd.DataFrame) -> str:
    best = rows.groupby("name")["return"].max().nlargest(_MANY_LINES).index
    figure = return_by_size(rows[rows["name"].isin(best)])
    note = f"The best {_MANY_LINES} of {rows['name'].nunique()}." if rows["name"].nunique() > _MANY_LINES else ""
    return page.section(
        "sizes",
        "Return by size of the few-shot set",
        page.image(figure, "Lines: mean return by number of few-shot episodes, with intervals"),
        note,
    )
