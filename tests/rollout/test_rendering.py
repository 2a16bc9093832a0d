"""Pictures of episodes: every family draws, the camera follows, the episode is the one the stepping engine runs."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.rollout import opengl
from promptdiffuser.rollout.rendering import Camera, demonstration_policy
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import RandomPolicy

SIZE = 64


@pytest.fixture
def can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    try:
        backend = opengl.choose_backend()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("MUJOCO_GL", backend)


@pytest.mark.usefixtures("can_draw")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_draws_moving_pictures(name: str) -> None:
    family = FAMILIES[name]
    camera = Camera(family, family.tasks[-1], SIZE)
    try:
        # Every tenth step, and as many of them as show a movement.
        film = camera.film(demonstration_policy(family, "random"), 0, every=10)
        frames = [next(film) for _ in range(2)]
    finally:
        camera.close()
    for frame in frames:
        assert frame.image.shape == (SIZE, SIZE, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.std() > 10, "the picture is blank"
    assert (frames[0].image != frames[1].image).any()
    assert frames[0].steps == 0
    assert 0 < frames[1].steps <= 10
    assert camera.frames_per_second in (20, 80, 100, 125)


@pytest.mark.usefixtures("can_draw")
def test_episode_is_the_stepping_engines() -> None:
    family = FAMILIES["ant-dir"]
    camera = Camera(family, 7, SIZE)
    frames = list(camera.film(demonstration_policy(family, "random"), 5, every=50))
    camera.close()
    episodes = EpisodeStepper(family).run([EpisodeRequest(7, 5)], RandomPolicy(family))
    assert sum(frame.steps for frame in frames) == episodes.lengths[0]
    assert sum(frame.reward for frame in frames) == pytest.approx(episodes.returns[0], rel=1e-6)
    assert len(frames) == 1 + np.ceil(episodes.lengths[0] / 50), "start, every fiftieth step and the end"


@pytest.mark.usefixtures("can_draw")
def test_camera_follows_a_robot_that_runs_away() -> None:
    family = FAMILIES["cheetah-vel"]
    camera = Camera(family, 39, SIZE)
    frames = list(camera.film(demonstration_policy(family, "expert"), 0, every=200))
    camera.close()
    # At 3 m/s it has run 30 m; it is the one orange thing in sight.
    for frame in frames:
        red, green, blue = (frame.image[..., channel].astype(int) for channel in range(3))
        assert ((red - blue > 30) & (red > green)).sum() > 20, "the robot has left the picture"


def test_expert_that_is_not_shipped_is_named() -> None:
    unknown = dataclasses.replace(FAMILIES["cheetah-vel"], name="unshipped")
    with pytest.raises(UserError, match=r"no medium policy is shipped for unshipped.*jobs/experts.py"):
        demonstration_policy(unknown, "medium")


@pytest.mark.parametrize(
    ("egl", "osmesa", "chosen"), [(True, True, "egl"), (True, False, "egl"), (False, True, "osmesa")]
)
def test_library_that_works_is_chosen(egl: bool, osmesa: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(opengl, "_has_egl", lambda: egl)
    monkeypatch.setattr(opengl, "_has_osmesa", lambda: osmesa)
    assert opengl.choose_backend() == chosen


def test_both_libraries_are_named_where_neither_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(opengl, "_has_egl", lambda: False)
    monkeypatch.setattr(opengl, "_has_osmesa", lambda: False)
    with pytest.raises(UserError, match=r"libEGL.so.1.*libegl1.*libegl-mesa0.*libOSMesa.so.*libosmesa6"):
        opengl.choose_backend()


def test_choice_of_the_user_is_kept_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengl, "_has_egl", lambda: True)
    monkeypatch.setattr(opengl, "_has_osmesa", lambda: False)
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    assert opengl.choose_backend() == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(UserError, match=r"libosmesa6.*leave MUJOCO_GL=osmesa unset"):
        opengl.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(UserError, match="MUJOCO_GL=glfw"):
        opengl.choose_backend()


def test_choosing_imports_no_simulator() -> None:
    code = "import sys, promptdiffuser.rollout.opengl; print('mujoco' in sys.modules, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["False", "False"]
