"""`jobs/import_pickles.py` and `jobs/exchange.py`: files in, datasets out, clear refusals."""

import os
import pickle
from pathlib import Path

import minari
import numpy as np
import pytest

from promptdiffuser.data.store import DatasetWriter, open_dataset
from tests.data.formats.samples import FAMILY, draw_steps, simulated_dataset
from tests.data.formats.test_macaw_buffers import write_buffer
from tests.data.synthetic import assert_equal, draw_episodes
from tests.jobs.scripts import Runner, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Runner:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return runner(monkeypatch, capsys)


def write_pickles(folder: Path) -> Path:
    folder.mkdir()
    for name, episodes in {"7-expert": 3, "7-prompt-expert": 1, "11-expert": 2, "7-medium": 2}.items():
        items = [draw_steps(200, seed=number) for number in range(episodes)]
        (folder / f"cheetah_vel-{name}.pkl").write_bytes(pickle.dumps(items))
    return folder


def test_folder_of_pickles_becomes_a_dataset(run: Runner, tmp_path: Path) -> None:
    source = write_pickles(tmp_path / "cheetah_vel")
    outcome = run("import_pickles", "cheetah-vel", source, tmp_path / "dataset")
    assert outcome.status == 0, outcome.errors
    dataset = open_dataset(tmp_path / "dataset")
    assert dataset.manifest.seed is None
    assert "import_pickles" in dataset.manifest.commands[0]
    assert {(r.task, r.quality, r.episodes) for r in dataset.manifest.files.values()} == {
        (7, "expert", 3),
        (11, "expert", 2),
    }
    np.testing.assert_array_equal(
        dataset.read([11]).observations[1], draw_steps(200, seed=1)["observations"].astype(np.float32)
    )
    assert dataset.manifest.digest in outcome.output


def test_pickles_are_added_to_a_dataset(run: Runner, tmp_path: Path) -> None:
    source = write_pickles(tmp_path / "cheetah_vel")
    writer = DatasetWriter(tmp_path / "dataset", FAMILY, "a test", seed=0)
    writer.add("medium", draw_episodes(FAMILY, [7] * 4))
    writer.commit()
    options = ["--qualities", "medium", "--tasks", "7"]
    outcome = run("import_pickles", "cheetah-vel", source, tmp_path / "dataset", *options)
    assert outcome.status == 0, outcome.errors
    dataset = open_dataset(tmp_path / "dataset")
    assert len(dataset.read([7], "medium")) == 6
    assert len(dataset.manifest.commands) == 2


def test_bad_pickles_leave_no_dataset(run: Runner, tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path}/proof",)

    source = write_pickles(tmp_path / "cheetah_vel")
    (source / "cheetah_vel-30-expert.pkl").write_bytes(pickle.dumps([Program()]))
    outcome = run("import_pickles", "cheetah-vel", source, tmp_path / "dataset")
    assert outcome.status == 2
    assert "cheetah_vel-30-expert.pkl" in outcome.errors
    assert "posix.system" in outcome.errors
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "dataset" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["ant-dir", "{source}", "{target}"], "ant-dir needs (200, 27)"),
        (["cheetah-vel", "{source}/none", "{target}"], "no file named ENV-ID-MODE.pkl"),
        (["cheetah-vel", "{source}", "{target}", "--tasks", "7", "12"], "task(s) [12]"),
        (["nope", "{source}", "{target}"], "unknown task family 'nope'"),
    ],
)
def test_what_cannot_be_imported_is_named(arguments: list[str], word: str, run: Runner, tmp_path: Path) -> None:
    places = {"source": write_pickles(tmp_path / "cheetah_vel"), "target": tmp_path / "dataset"}
    outcome = run("import_pickles", *(argument.format(**places) for argument in arguments))
    assert outcome.status == 2
    assert word in outcome.errors


def test_macaw_buffers_become_three_qualities(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "macaw").mkdir()
    written = {
        task: write_buffer(tmp_path / "macaw" / f"buffers_cheetah_vel_train_{task}_sub_task_0.hdf5", [200] * 9)
        for task in (7, 11)
    }
    outcome = run("exchange", "from-macaw", "cheetah-vel", tmp_path / "macaw", tmp_path / "dataset", "--episodes", "2")
    assert outcome.status == 0, outcome.errors
    dataset = open_dataset(tmp_path / "dataset")
    assert {(r.task, r.quality, r.episodes) for r in dataset.manifest.files.values()} == {
        (task, quality, 2) for task in (7, 11) for quality in ("random", "medium", "expert")
    }
    np.testing.assert_array_equal(dataset.read([11]).observations[-1], written[11][-1]["obs"])
    single = tmp_path / "macaw" / "mine.hdf5"
    write_buffer(single, [200] * 3)
    outcome = run("exchange", "from-macaw", "cheetah-vel", single, tmp_path / "other", "--tasks", "30")
    assert outcome.status == 0, outcome.errors
    assert open_dataset(tmp_path / "other").manifest.tasks.keys() == {30}


def test_missing_macaw_buffers_are_named(run: Runner, tmp_path: Path) -> None:
    outcome = run("exchange", "from-macaw", "cheetah-vel", tmp_path, tmp_path / "dataset")
    assert outcome.status == 2
    assert "buffers_ENV_train_ID_sub_task_0.hdf5" in outcome.errors
    assert not (tmp_path / "dataset").exists()


def test_dataset_goes_to_minari_and_comes_back(run: Runner, tmp_path: Path) -> None:
    dataset = simulated_dataset(tmp_path / "dataset", tasks=(7, 8), episodes=2)
    outcome = run("exchange", "to-minari", tmp_path / "dataset", "--qualities", "random", "medium", "--tasks", "7")
    assert outcome.status == 0, outcome.errors
    names = [f"promptdiffuser/cheetah-vel/task-7-{quality}-v0" for quality in ("medium", "random")]
    assert outcome.output.split() == names
    assert sorted(minari.list_local_datasets()) == names
    for name in names:
        outcome = run("exchange", "from-minari", name, tmp_path / "again")
        assert outcome.status == 0, outcome.errors
    again = open_dataset(tmp_path / "again")
    for quality in ("medium", "random"):
        assert_equal(again.read([7], quality), dataset.read([7], quality))
    outcome = run("exchange", "from-minari", names[0], tmp_path / "third", "--task", "9", "--quality", "mixed")
    assert outcome.status == 0, outcome.errors
    assert {(r.task, r.quality) for r in open_dataset(tmp_path / "third").manifest.files.values()} == {(9, "mixed")}


def test_what_cannot_be_exchanged_is_named(run: Runner, tmp_path: Path) -> None:
    simulated_dataset(tmp_path / "dataset", episodes=1)
    for arguments, word in (
        (["to-minari", tmp_path / "dataset"], "no expert episodes"),
        (
            ["to-minari", tmp_path / "dataset", "--qualities", "random", "--tasks", "7", "8"],
            "no random episodes of task 8",
        ),
        (["to-minari", tmp_path / "none"], "manifest.json"),
        (["from-minari", "their/data-v0", tmp_path / "again"], "no Minari dataset their/data-v0"),
    ):
        outcome = run("exchange", *arguments)
        assert outcome.status == 2, arguments
        assert word in outcome.errors
