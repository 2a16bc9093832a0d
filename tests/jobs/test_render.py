"""`jobs/render.py`: a film on disk and in MLflow, and clear refusals."""

import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import pytest
from mlflow import MlflowClient

from promptdiffuser.errors import UserError
from promptdiffuser.rollout import opengl
from promptdiffuser.tracking.store import prepare
from tests.jobs.scripts import ROOT, Runner, runner

# Meta-World's reach has the shortest films: 100 steps at 80 a second.
EPISODE = ("reach", "--task", "7", "--quality", "random", "--size", "64")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Making a store takes seconds, so all tests share one."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    prepare(uri, "render")
    return uri


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str) -> Runner:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MUJOCO_GL", "")
    return runner(monkeypatch, capsys)


@pytest.fixture
def can_draw(run: Runner) -> None:
    try:
        opengl.choose_backend()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("can_draw")
def test_gif_is_written_and_logged_as_a_run(run: Runner, store: str, tmp_path: Path) -> None:
    outcome = run("render", *EPISODE, "--output", tmp_path / "episode.gif")
    assert outcome.status == 0, outcome.errors
    # The start, every fourth step, 20 a second.
    assert imageio.imread(tmp_path / "episode.gif", index=None).shape == (26, 64, 64, 3)
    assert imageio.immeta(tmp_path / "episode.gif")["duration"] == 50
    assert "length 100.00" in outcome.output
    assert "success" in outcome.output
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("render")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'reach-task-7-random-seed-0'")
    assert found.info.status == "FINISHED"
    assert found.data.params["family"] == "reach"
    assert found.data.metrics["episode/length"] == 100
    assert [artifact.path for artifact in client.list_artifacts(found.info.run_id)] == ["episode.gif"]
    assert [path.name for path in tmp_path.iterdir()] == ["episode.gif"], "nothing unfinished is left behind"


@pytest.mark.usefixtures("can_draw")
def test_mp4_is_written_and_attached_to_a_run(run: Runner, store: str, tmp_path: Path) -> None:
    tracker = prepare(store, "somebody's")
    theirs = tracker.run("a run", "fingerprint", None, {})
    theirs.finish("FAILED")
    outcome = run("render", *EPISODE, "--output", tmp_path / "episode.mp4", "--run-id", theirs.run_id)
    assert outcome.status == 0, outcome.errors
    film = imageio.improps(tmp_path / "episode.mp4", plugin="FFMPEG")
    assert film.shape[1:] == (64, 64, 3)
    assert imageio.immeta(tmp_path / "episode.mp4", plugin="FFMPEG")["fps"] == 40
    client = MlflowClient(store)
    assert [artifact.path for artifact in client.list_artifacts(theirs.run_id, "renders")] == ["renders/episode.mp4"]
    assert client.get_run(theirs.run_id).info.status == "FAILED", "a run that is over stays as it ended"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reach", "--output", "film.avi"], ("film.avi", ".mp4 or .gif")),
        (["reach", "--output", "film.gif", "--size", "100"], ("--size", "multiple of 16")),
        (["nope", "--output", "film.gif"], ("nope", "cheetah-vel")),
        (["reach", "--output", "film.gif", "--task", "50", "--quality", "random"], ("no task 50",)),
        (["reach", "--output", "film.gif", "--run-id", "none"], ("no MLflow run none",)),
    ],
)
@pytest.mark.usefixtures("can_draw")
def test_what_cannot_be_filmed_is_named(
    arguments: list[str], words: tuple[str, ...], run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("render", *arguments)
    assert outcome.status == 2
    for word in words:
        assert word in outcome.errors
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("can_draw")
def test_mp4_without_ffmpeg_says_what_to_install(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    outcome = run("render", *EPISODE, "--output", tmp_path / "episode.mp4")
    assert outcome.status == 2
    assert "pip install 'promptdiffuser[render]'" in outcome.errors


@pytest.mark.parametrize("setting", ["", "egl"])
def test_machine_without_a_driver_is_told_what_it_lacks(setting: str, tmp_path: Path) -> None:
    # An empty folder of drivers: libEGL loads and finds none, as on a server without Mesa.
    if opengl._has_osmesa() and not setting:
        pytest.skip("OSMesa is here, so films can be made without EGL")
    nothing = {"__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path), "__EGL_VENDOR_LIBRARY_FILENAMES": "", "MUJOCO_GL": setting}
    result = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "render.py"), *EPISODE, "--output", "film.gif"],
        cwd=tmp_path,
        env=os.environ | nothing,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for word in ("libEGL.so.1", "libegl1") + (() if setting else ("libOSMesa.so", "libosmesa6")):
        assert word in result.stderr
