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

from analysis.intervals import bootstrap_mean, paired_difference, task_interval
from analysis.report import conclusions, render, write_report
from analysis.runs import load_experiment
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tracking.store import Tracker

ROOT = Path(__file__).resolve().parents[2]
VOID_TAGS = {"meta", "img", "circle", "line"}


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
def page(experiment: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Return the parsed report of the synthetic experiment."""
    path = write_report(experiment.uri, experiment.name, tmp_path_factory.mktemp("report") / "new" / "report.html")
    return Page(path.read_text(encoding="utf-8"))


def numbers(cell: str) -> list[float]:
    """Return the numbers in a cell."""
    return [float(text.replace(",", "")) for text in re.findall(r"-?\d[\d,]*\.?\d*", cell)]


def test_tables_show_the_summary(experiment: Any, page: Page) -> None:
    """Every number of the two tables is the summary's, rounded."""
    methods = experiment.summary["methods"]
    labels = ["Prompt-DT", "Another task's prompt", "Prompt Diffuser", "Prompt Diffuser + task context"]
    names = ["prompt-dt", "other-task-prompt", "prompt-diffuser", "prompt-diffuser-context"]
    assert [row[0] for row in page.rows["methods"][1:]] == labels
    for name, cells in zip(names, page.rows["methods"][1:], strict=True):
        row = methods[name]
        assert numbers(cells[1]) == pytest.approx([row["mean"], row["ci_low"], row["ci_high"]], abs=0.006)
        shown = [numbers(cell)[0] for cell in cells[3:]]
        cost = [100 * row["failed_share"], row["seconds_adapt"], row["tunable_parameters"]]
        assert shown == pytest.approx([row["normalised"], *cost], abs=0.06)
    assert page.rows["tasks"][0] == ["Method", "Task 2, 0.225 m/s", "Task 7, 0.6 m/s", "Task 15, 1.2 m/s"]
    for name, cells in zip(names, page.rows["tasks"][1:], strict=True):
        expected = [methods[name]["per_task"][str(task)] for task in experiment.summary["test_tasks"]]
        assert [numbers(cell)[0] for cell in cells[1:]] == pytest.approx(expected, abs=0.006)


def test_page_is_complete_and_self_contained(experiment: Any, page: Page) -> None:
    """All sections are there, text is escaped, and nothing is fetched from elsewhere."""
    assert list(page.text)[1:] == [
        "conclusions", "methods", "tasks", "returns", "prompts", "training", "provenance"
    ]  # fmt: skip
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    facts = {row[0]: row[1] for row in page.rows["provenance"] if len(row) == 2}
    assert facts["command"] == "python jobs/pipeline.py <synthetic> --seed 7"
    assert facts["dataset digest"] == "synthetic-digest"
    protocol = {key.removeprefix("protocol: "): value for key, value in facts.items() if key.startswith("protocol")}
    assert protocol == {
        "prompts": "2",
        "episodes_per_prompt": "3",
        "few_shot.episodes": "5",
        "few_shot.quality": "mixed",
        "few_shot.returns": "high",
    }
    assert facts["MLflow run"] == experiment.parent_run_id
    assert (facts["backbone.layers"], facts["torch"]) == ("3", "2.13")


def test_conclusions_follow_the_numbers(page: Page) -> None:
    """The made-up means decide which sentences appear."""
    text = page.text["conclusions"]
    assert "Prompt Diffuser has the highest mean return" in text
    assert "do not overlap" in text
    assert "better on 3 of 3: zero lies outside, a gain" in text
    assert "better on 0 of 3: zero lies outside, a loss" in text
    assert "on all of them 25% of the time" in text
    assert "one training seed (7)" in text


def test_caution_comes_first(experiment: Any) -> None:
    """What limits every number is said before the numbers, and nothing is said where nothing limits them."""
    results = load_experiment(experiment.uri, experiment.name, experiment.parent_run_id)
    caution = FAMILIES["cheetah-dir"].caution
    cautious = dataclasses.replace(results, summary=results.summary | {"caution": caution})
    assert conclusions(cautious) == [caution, *conclusions(results)]
    assert caution in Page(render(cautious)).text["conclusions"]
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
        ("pretrain", "training/loss"): 300,
        ("train-diffuser", "training/loss"): 300,
        ("train-diffuser", "training/loss_dm"): 300,
        ("train-diffuser", "training/loss_dt"): 300,
    }
    assert len(results.episodes) == 4 * 3 * 2 * 3
    assert len(results.prompts) == 5 * 3 * 6
    assert results.prompts["features"][0].shape == (135,)


def test_intervals() -> None:
    """The bootstrap of a mean has about the width of the normal one, respects prompts, and pairs by task."""
    values = np.random.default_rng(3).normal(size=400)
    interval = bootstrap_mean(values)
    half_width = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half_width, rel=0.05)
    assert interval.high == pytest.approx(values.mean() + half_width, rel=0.05)
    # Two prompts of equal episodes: only the prompts vary, so the interval reaches from one to the other.
    shared = pd.DataFrame({"prompt": [0] * 50 + [1] * 50, "return": [1.0] * 50 + [3.0] * 50})
    assert task_interval(shared).low == 1.0
    assert task_interval(shared).high == 3.0
    rows = [(m, t, 100.0 * t + (5.0 if m == "new" else 0.0)) for m in ("new", "old") for t in range(4)]
    paired = paired_difference(pd.DataFrame(rows, columns=["method", "task", "return"]), "new", "old")
    assert (paired.interval.low, paired.interval.high, paired.tasks_better) == (5.0, 5.0, 4)
    assert paired.settled
