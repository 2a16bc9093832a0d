"""`jobs/describe.py`: its numbers are those of the episodes, its pictures are there."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from promptdiffuser.data.manifest import FileRecord, Manifest, TaskRecord
from promptdiffuser.data.store import Dataset, DatasetWriter, open_dataset
from promptdiffuser.reporting.datasets import class_of, table
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import draw_episodes
from tests.jobs.scripts import ROOT, Runner, runner

FAMILY = FAMILIES["cheetah-vel"]
TASKS = (2, 7, 30)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Episodes of three tasks; those of task 7 lie in two files."""
    writer = DatasetWriter(tmp_path_factory.mktemp("data") / "dataset", FAMILY, "a test [with brackets]", seed=3)
    for seed, quality in enumerate(("expert", "medium")):
        writer.add(quality, draw_episodes(FAMILY, TASKS * 4, seed=seed))
        writer.add(quality, draw_episodes(FAMILY, [7] * 2, [200, 50], seed=10 + seed))
    return writer.commit()


def test_numbers_are_those_of_the_episodes(dataset: Dataset) -> None:
    lines, totals = table(dataset.manifest, FAMILY)
    assert [(line.label, line.quality) for line in lines] == [
        (f"{task}: {FAMILY.label(task)}", quality) for task in TASKS for quality in ("expert", "medium")
    ]
    for line, (task, quality) in zip(
        lines, [(task, quality) for task in TASKS for quality in ("expert", "medium")], strict=True
    ):
        episodes, record = dataset.read([task], quality), dataset.manifest.tasks[task]
        assert (line.tasks, line.episodes, line.steps) == (1, len(episodes), episodes.lengths.sum())
        assert line.return_min == episodes.returns.min()
        assert line.return_max == episodes.returns.max()
        assert line.return_mean == pytest.approx(episodes.returns.mean())
        score = (episodes.returns.mean() - record.random_return) / (record.expert_return - record.random_return)
        assert line.normalised == pytest.approx(score)
        assert line.success == pytest.approx(episodes.successes.mean())
    for total, quality in zip(totals, ("expert", "medium"), strict=True):
        everything = dataset.read(TASKS, quality)
        assert (total.label, total.quality, total.tasks, total.episodes) == ("all", quality, 3, 14)
        assert total.return_mean == pytest.approx(everything.returns.mean())
        # Every task counts alike, however many episodes it has.
        scores = [line.normalised for line in lines if line.quality == quality]
        assert total.normalised == pytest.approx(np.mean(scores))


def test_large_families_show_classes_unless_asked() -> None:
    family = FAMILIES["ml10"]
    tasks = family.tasks[:100] + family.tasks[-50:]
    records = {
        f"{task}": FileRecord(task, "expert", 2, 1000, float(task), float(task), float(task), 1, "") for task in tasks
    }
    manifest = Manifest(
        family.name, 39, 4, 500, 0, ("a test",), {}, {t: TaskRecord((0.0,), 0.0, 1.0) for t in tasks}, records
    )
    lines, totals = table(manifest, family)
    classes = family.make_options["classes"]
    assert [line.label for line in lines] == [classes[0], classes[1], classes[-1]]
    assert [line.tasks for line in lines] == [50, 50, 50]
    assert lines[1].return_mean == pytest.approx(np.mean(range(50, 100)))
    assert totals[0].success == 0.5
    assert len(table(manifest, family, every_task=True)[0]) == 150
    assert class_of(FAMILY, 7) == "all tasks"


def test_job_prints_a_table_and_where_the_data_come_from(dataset: Dataset, run: Runner, tmp_path: Path) -> None:
    outcome = run("describe", dataset.location, "--histograms", tmp_path / "figures")
    assert outcome.status == 0, outcome.errors
    for word in (
        "7: 0.6 m/s",
        "medium",
        "normalised",
        dataset.manifest.digest,
        "mujoco 3.3.0",
        "a test [with brackets]",
    ):
        assert word in outcome.output
    assert "success" not in outcome.output, "cheetah-vel does not say what success is"
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "returns-expert.png",
        "returns-medium.png",
    ]
    picture = imread(tmp_path / "figures" / "returns-expert.png")
    assert picture.shape[0] > 200
    assert picture[..., :3].std() > 0.02, "the picture is blank"


def test_histogram_takes_equal_returns(dataset: Dataset, tmp_path: Path, run: Runner) -> None:
    # As scripts without a random start give.
    episodes = draw_episodes(FAMILY, [7] * 3)
    same = episodes.select(np.array([0, 0, 0]))
    writer = DatasetWriter(tmp_path / "dataset", FAMILY, "a test", seed=0)
    writer.add("random", dataclasses.replace(same, seeds=episodes.seeds))
    writer.commit()
    assert run("describe", tmp_path / "dataset", "--histograms", tmp_path / "figures").status == 0


def test_bad_datasets_are_refused_by_name(run: Runner, tmp_path: Path) -> None:
    outcome = run("describe", tmp_path)
    assert outcome.status == 2
    assert str(tmp_path) in outcome.errors
    assert "manifest.json" in outcome.errors
    DatasetWriter(tmp_path / "empty", FAMILY, "a test", seed=0).commit()
    assert not open_dataset(tmp_path / "empty").manifest.files
    assert "no episodes" in run("describe", tmp_path / "empty").errors


def test_script_runs_from_anywhere(dataset: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "describe.py"), dataset.location]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert dataset.manifest.digest in result.stdout
    assert max(map(len, result.stdout.splitlines())) > 80, "tables in logs are not cut to 80 columns"
