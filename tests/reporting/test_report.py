"""The report of a synthetic experiment says what its summary says, and refuses what is not there."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.reporting.diagnostics import inside_table, shown_inside
from promptdiffuser.reporting.mlflow_reader import load_experiment, scored_episodes
from promptdiffuser.reporting.report import conclusions, render, report_tables, write_report
from promptdiffuser.statistics.aggregates import (
    aggregate,
    interquartile_mean,
    optimality_gap,
    probability_of_improvement,
)
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.statistics.paired import paired_difference
from promptdiffuser.statistics.scores import run_scores
from promptdiffuser.statistics.variance import variance_components
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.references import reference_returns
from promptdiffuser.tracking.store import Tracker

ROOT = Path(__file__).resolve().parents[2]
VOID_TAGS = {"meta", "img"}


class Page(HTMLParser):
    """Collects the table rows of a page by section, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        """Parse a page."""
        super().__init__()
        self.open_tags: list[str] = []
        self.section = ""
        self.rows: dict[str, list[list[str]]] = {}
        self.text: dict[str, str] = {}
        self.sources: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open sections, rows and cells."""
        attributes = dict(attrs)
        self.sources += [str(attributes[name]) for name in ("src", "href") if name in attributes]
        if tag == "section":
            self.section = str(attributes["id"])
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the newest open tag, which has to be this one."""
        if tag not in VOID_TAGS:
            assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the text of cells and sections."""
        self.text[self.section] = self.text.get(self.section, "") + data
        if "td" in self.open_tags or "th" in self.open_tags:
            self.rows[self.section][-1][-1] += data


@pytest.fixture(scope="session")
def page(report: Path) -> Page:
    """Return the parsed report of the synthetic experiment."""
    return Page(report.read_text(encoding="utf-8"))


def numbers(cell: str) -> list[float]:
    """Return the numbers in a cell."""
    return [float(text.replace(",", "")) for text in re.findall(r"-?\d[\d,]*\.?\d*", cell)]


def test_tables_show_the_summary(experiment: Any, page: Page) -> None:
    """Every number of the two tables is the summary's, rounded."""
    methods = experiment.summary["methods"]
    labels = ["Prompt-DT", "Another task's prompt", "Prompt Diffuser", "Prompt Diffuser + task context"]
    names = ["prompt-dt", "other-task-prompt", "prompt-diffuser", "prompt-diffuser-context"]
    floors = ["Zero actions", "Mean action of the training data"]
    assert [row[0] for row in page.rows["methods"][1:]] == labels + floors
    for name, cells in zip(names, page.rows["methods"][1:-2], strict=True):
        row = methods[name]
        assert numbers(cells[1]) == pytest.approx([row["mean"], row["ci_low"], row["ci_high"]], abs=0.006)
        shown = [numbers(cell)[0] for cell in cells[2:]]
        cost = [100 * row["failed_share"], row["seconds_adapt"], row["tunable_parameters"]]
        assert shown == pytest.approx([row["normalised"], *cost], abs=0.06)
    assert page.rows["tasks"][0] == ["Method", "Task 2, 0.225 m/s", "Task 7, 0.6 m/s", "Task 15, 1.2 m/s"]
    for name, cells in zip(names, page.rows["tasks"][1:-2], strict=True):
        expected = [methods[name]["per_task"][str(task)] for task in experiment.summary["test_tasks"]]
        assert [numbers(cell)[0] for cell in cells[1:]] == pytest.approx(expected, abs=0.006)
    references = reference_returns(FAMILIES["cheetah-vel"])
    zero = [references[task].zero_return for task in experiment.summary["test_tasks"]]
    assert [numbers(cell)[0] for cell in page.rows["tasks"][-2][1:]] == pytest.approx(zero, abs=0.006)
    floor = experiment.summary["references"]["zero-action"]
    shown = [numbers(cell)[0] for cell in page.rows["methods"][-2] if numbers(cell)]
    assert shown == pytest.approx([floor["mean"], floor["normalised"]], abs=0.006)


def test_tables_show_the_statistics(experiment: Any, page: Page) -> None:
    """The sections on evidence show what the functions of analysis/ return for the episodes."""
    episodes = scored_episodes(load_experiment(experiment.uri, experiment.name))
    scores = run_scores(episodes)
    others = ["other-task-prompt", "prompt-diffuser", "prompt-diffuser-context"]

    def shown(interval: Interval) -> list[float]:
        return [interval.estimate, interval.low, interval.high]

    for name, cells in zip(["prompt-dt", *others], page.rows["scores"][1:-2], strict=True):
        assert numbers(cells[1]) == pytest.approx(shown(aggregate(scores[name], interquartile_mean)), abs=0.0006)
        assert numbers(cells[2]) == pytest.approx(shown(aggregate(scores[name], optimality_gap)), abs=0.0006)
        assert cells[3] == "6 prompts"
        if name == "prompt-dt":
            assert cells[4] == "–"
        else:
            chance = probability_of_improvement(scores[name], scores["prompt-dt"])
            expected = shown(chance) if chance.is_known else [chance.estimate]
            assert numbers(cells[4]) == pytest.approx(expected, abs=0.006)
    for name, cells in zip(others, page.rows["differences"][1:], strict=True):
        paired = paired_difference(episodes, name, "prompt-dt")
        bounds = [*shown(paired.on_these_tasks), *shown(paired.on_tasks_like_these)[1:], paired.tasks_better, 3, 6]
        assert numbers(" ".join(cells[1:])) == pytest.approx(bounds, abs=0.006)
        assert cells[-1] == "too few trainings"
    assert page.rows["variance"][0] == ["Method", "Task", "Prompt", "Episode"]
    for name, cells in zip(["prompt-dt", *others], page.rows["variance"][1:], strict=True):
        components = variance_components(episodes, name)
        expected = zip(np.sqrt(components["variance"].clip(lower=0)), 100 * components["share"], strict=True)
        assert [numbers(cell) for cell in cells[1:]] == [pytest.approx(pair, abs=0.51) for pair in expected]


def test_a_report_comes_out_of_every_evaluation(experiment: Any) -> None:
    """What cannot be computed is replaced by its reason; episodes without a return are left out and counted."""
    results = load_experiment(experiment.uri, experiment.name)
    episodes = results.episodes

    def page_of(changed: Any) -> Page:
        other = dataclasses.replace(results, episodes=changed)
        return Page(render(other, report_tables(other)))

    lost = episodes.assign(diverged=False)
    lost.loc[0, ["diverged", "return"]] = [True, np.nan]
    diverged = page_of(lost)
    assert "1 of 144 episodes have no return because their simulator diverged" in diverged.text["conclusions"]
    assert "Not computed: method 'prompt-dt' has from 1 to 2 values of episode" in diverged.text["variance"]
    assert len(diverged.rows["scores"]) == len(diverged.rows["differences"]) + 3 == 7
    targets = page_of(pd.concat([lost.assign(target_return=0.0), episodes.assign(target_return=9.0)]))
    assert targets.text["conclusions"] == diverged.text["conclusions"]
    single = page_of(episodes[(episodes["prompt"] == 0) & (episodes["episode"] == 0)])
    assert "(interval not known) over a single unit, better on 3 of 3 tasks" in single.text["conclusions"]
    assert all(cells[1].endswith(" –") for cells in single.rows["differences"][1:])
    few = page_of(episodes.assign(prompt_source=episodes["prompt"] % 2))
    assert {cells[3] for cells in few.rows["scores"][1:-2]} == {"2 prompts"}
    assert all("[" not in cell for cells in few.rows["scores"][1:] for cell in cells)
    alone = page_of(episodes[episodes["method"] == "prompt-diffuser"])
    assert "Not computed: the experiment has no method 'prompt-dt'" in alone.text["differences"]
    assert alone.rows["scores"][0] == ["Method", "Interquartile mean", "Optimality gap", "Over"]
    still = dict.fromkeys(("mean", "ci_low", "ci_high"), experiment.summary["references"]["zero-action"]["mean"] - 1)
    methods = results.summary["methods"] | {"prompt-dt": results.summary["methods"]["prompt-dt"] | still}
    idle = dataclasses.replace(results, summary=results.summary | {"methods": methods})
    assert "Nothing shows that these learned anything" in " ".join(conclusions(idle))
    assert "Nothing shows" not in " ".join(conclusions(results))
    copies = episodes["prompt_source"].where(episodes["method"] != "prompt-dt", 0)
    mixed = page_of(episodes.assign(prompt_source=copies))
    assert mixed.rows["variance"][1][2] == "–", "prompt-dt has one prompt"
    broken = page_of(episodes.assign(**{"return": np.nan}))
    assert "36 of 36 episodes of method 'other-task-prompt' have no finite return" in broken.text["conclusions"]


def test_page_is_complete_and_self_contained(experiment: Any, page: Page) -> None:
    """All sections are there, text is escaped, and nothing is fetched from elsewhere."""
    assert list(page.text)[1:] == [
        "conclusions", "methods", "returns", "scores", "differences", "tasks", "variance", "prompts", "inside",
        "training", "provenance",
    ]  # fmt: skip
    fetched = [source for source in page.sources if not source.startswith("http://127.0.0.1:5000/#/experiments/")]
    assert len(fetched) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in fetched)
    facts = {row[0]: row[1] for row in page.rows["provenance"] if len(row) == 2}
    assert facts["command"] == "python jobs/pipeline.py <synthetic> --seed 7"
    assert facts["dataset digest"] == "synthetic-digest"
    protocol = {key.removeprefix("protocol: "): value for key, value in facts.items() if key.startswith("protocol")}
    assert protocol == {
        "prompts": "6",
        "episodes_per_prompt": "2",
        "few_shot.episodes": "5",
        "few_shot.quality": "mixed",
        "few_shot.returns": "high",
    }
    assert facts["MLflow run"] == experiment.parent_run_id
    assert (facts["backbone.layers"], facts["torch"]) == ("3", "2.13")


def test_what_was_seen_inside_is_shown(experiment: Any, page: Page) -> None:
    """Numbers in a table with what is missing left out, lists as curves; without any there is no section."""
    assert page.rows["inside"] == [
        ["Measure", "Prompt Diffuser, train-diffuser", "Prompt Diffuser + task context, train-diffuser"],
        ["diversity", "0.75", "0.5"],
    ]
    results = load_experiment(experiment.uri, experiment.name)
    table = inside_table(results.inside)
    lists = table[table["measure"] == "by_return.true"].groupby("method")["value"].apply(list)
    assert lists.to_dict() == {"prompt-diffuser": [1.0, 2.0, 4.0], "prompt-diffuser-context": [2.0, 3.0, 3.5]}
    assert len(table) == 8
    blind = dataclasses.replace(results, inside={})
    assert "inside" not in Page(render(blind, report_tables(blind))).text
    assert set(shown_inside(table[table["position"] == 0])) == {"numbers"}


def test_tables_lie_beside_the_report(experiment: Any, report: Path) -> None:
    """Every table of the page in both formats; the methods' one is the summary."""
    names = {"methods", "tasks", "scores", "differences", "variance", "curves", "inside"}
    for kind in ("csv", "parquet"):
        assert {file.stem for file in report.with_suffix("").glob(f"*.{kind}")} == names
    methods = pd.read_csv(report.with_suffix("") / "methods.csv").set_index("method")
    means = {name: row["mean"] for name, row in experiment.summary["methods"].items()}
    assert methods["mean"].to_dict() == pytest.approx(means)


def test_conclusions_follow_the_numbers(page: Page) -> None:
    """The made-up means decide which sentences appear."""
    text = page.text["conclusions"]
    assert "Prompt Diffuser has the highest mean return" in text
    assert "better on 3 of 3 tasks; not enough trainings for a verdict (1 of 3)" in text
    assert "better on 0 of 3 tasks; not enough trainings" in text
    assert "on all of them 25% of the time" in text
    assert "one training of every model (seed 7)" in text
    assert not re.search("Prompt Diffuser is (better|worse) than", text)


def test_caution_comes_first(experiment: Any) -> None:
    """What limits every number is said before the numbers, and nothing is said where nothing limits them."""
    results = load_experiment(experiment.uri, experiment.name, experiment.parent_run_id)
    caution = FAMILIES["cheetah-dir"].caution
    cautious = dataclasses.replace(results, summary=results.summary | {"caution": caution})
    assert conclusions(cautious) == [caution, *conclusions(results)]
    assert caution in Page(render(cautious, report_tables(cautious))).text["conclusions"]
    assert "has the highest mean return" in conclusions(results)[0]


def test_command_line(experiment: Any, tmp_path: Path) -> None:
    """The script runs from the repository root, and an unknown experiment is one line and status 2."""
    environment = {"MLFLOW_TRACKING_URI": experiment.uri, "PYTHONPATH": str(ROOT / "platform"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "analysis/report.py", "--output", str(tmp_path / "r.html"), "--experiment"]
    refused = subprocess.run([*command, "nothing"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "python jobs/pipeline.py nothing" in refused.stderr
    assert not (tmp_path / "r.html").exists()


def test_missing_parts_are_named(tracker: Callable[[str], Tracker], tmp_path: Path) -> None:
    """First no experiment run, then no evaluate run, then an evaluate run without its files."""
    store = tracker("unfinished")
    with pytest.raises(UserError, match=r"no run yet; make it with: python jobs/pipeline\.py unfinished"):
        write_report(store.uri, "unfinished", tmp_path / "report.html")
    parent = store.run("experiment", "unfinished", None, {"promptdiffuser.stage": "experiment"})
    with pytest.raises(UserError, match=r"no evaluate run .* python jobs/pipeline\.py unfinished"):
        write_report(store.uri, "unfinished", tmp_path / "report.html")
    store.run("evaluate", "unfinished-evaluate", parent, {"promptdiffuser.stage": "evaluate"})
    with pytest.raises(UserError, match=r"no artifact episodes\.parquet"):
        write_report(store.uri, "unfinished", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_load_keeps_what_was_logged(experiment: Any) -> None:
    """Histories, episodes and prompts come back whole, also by the run id of the experiment."""
    results = load_experiment(experiment.uri, experiment.name, experiment.parent_run_id)
    assert results.metrics.groupby(["stage", "key"]).size().to_dict() == {
        ("pretrain", "train/loss"): 300,
        ("train-diffuser", "train/loss"): 300,
        ("train-diffuser", "train/loss_dm"): 300,
        ("train-diffuser", "train/loss_dt"): 300,
    }
    assert len(results.episodes) == 4 * 3 * 6 * 2
    assert len(results.prompts) == 5 * 3 * 6
    assert results.prompts["features"][0].shape == (135,)
