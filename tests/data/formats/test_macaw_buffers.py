"""MACAW buffers: both directions, ends with and without marks, thirds by the published recipe."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.formats.macaw import Span, choose, file_task, read_macaw_buffer
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tasks.family import TaskFamily

FAMILY, WALKING = FAMILIES["cheetah-vel"], FAMILIES["ant-dir"]
QUALITIES: tuple[Quality, ...] = ("random", "medium", "expert")


def write_buffer(
    path: Path,
    lengths: list[int],
    family: TaskFamily = FAMILY,
    backward: bool = True,
    without: tuple[str, ...] = (),
    at_horizon: bool = True,
) -> list[dict[str, np.ndarray]]:
    """Write a buffer as MACAW's `ReplayBuffer` does (or forwards) and return its episodes in their real order."""
    generator = np.random.default_rng(0)
    episodes = []
    for length in lengths:
        states = generator.normal(size=(length + 1, family.observation_dim)).astype(np.float32)
        ends = np.arange(length) == length - 1
        episodes.append(
            {
                "obs": states[:-1],
                "next_obs": states[1:],
                "actions": generator.uniform(-1, 1, (length, family.action_dim)).astype(np.float32),
                "rewards": generator.normal(size=(length, 1)).astype(np.float32),
                # Whether reaching the horizon is marked depends on the environment's wrapper.
                "terminals": (ends & (at_horizon or length < family.horizon))[:, None],
            }
        )
    step = -1 if backward else 1
    with h5py.File(path, "w") as file:
        for key in episodes[0]:
            if key not in without:
                rows = np.concatenate([episode[key][::step] for episode in episodes])
                file.create_dataset(key, data=rows, compression="lzf")
        file.create_dataset("discount_factor", data=0.99)
    return episodes


def read(path: Path, quality: Quality, family: TaskFamily = FAMILY, episodes: int = 1000) -> Episodes:
    return Episodes.concatenate(list(read_macaw_buffer(path, family, 7, quality, episodes)))


def assert_same(episodes: Episodes, expected: list[dict[str, np.ndarray]]) -> None:
    assert episodes.lengths.tolist() == [len(episode["obs"]) for episode in expected]
    for row, episode in enumerate(expected):
        length = len(episode["obs"])
        np.testing.assert_array_equal(episodes.observations[row, :length], episode["obs"])
        np.testing.assert_array_equal(episodes.actions[row, :length], episode["actions"])
        np.testing.assert_array_equal(episodes.rewards[row, :length], episode["rewards"][:, 0])
        assert not episodes.rewards[row, length:].any()


@pytest.mark.parametrize("at_horizon", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_thirds_hold_the_episodes_in_time_order(backward: bool, at_horizon: bool, tmp_path: Path) -> None:
    written = write_buffer(tmp_path / "b.hdf5", [200] * 9, backward=backward, at_horizon=at_horizon)
    for quality, expected in zip(QUALITIES, (written[:3], written[3:6], written[6:]), strict=True):
        assert_same(read(tmp_path / "b.hdf5", quality), expected)


@pytest.mark.parametrize("backward", [True, False])
def test_files_without_next_obs_are_told_apart_by_their_marks(backward: bool, tmp_path: Path) -> None:
    written = write_buffer(tmp_path / "b.hdf5", [200] * 6, backward=backward, without=("next_obs",))
    assert_same(read(tmp_path / "b.hdf5", "expert"), written[4:])


def test_files_without_any_mark_are_cut_at_the_horizon(tmp_path: Path) -> None:
    written = write_buffer(tmp_path / "b.hdf5", [200] * 6, backward=False, without=("next_obs",), at_horizon=False)
    assert_same(read(tmp_path / "b.hdf5", "medium"), written[2:4])


@pytest.mark.parametrize("backward", [True, False])
def test_episodes_that_terminate_keep_their_length(backward: bool, tmp_path: Path) -> None:
    lengths = [200, 30, 5, 200, 199, 1, 200, 60, 77]
    written = write_buffer(tmp_path / "b.hdf5", lengths, WALKING, backward, at_horizon=False)
    found = [read(tmp_path / "b.hdf5", quality, WALKING) for quality in QUALITIES]
    # 972 rows: thirds begin at rows 324 and 648.
    assert [episodes.lengths.tolist() for episodes in found] == [[200, 30, 5, 200], [199, 1, 200], [60, 77]]
    assert_same(found[0], written[:4])
    assert len({seed for episodes in found for seed in episodes.seeds.tolist()}) == 9


def test_incomplete_episode_at_the_end_is_left_out(tmp_path: Path) -> None:
    written = write_buffer(tmp_path / "b.hdf5", [200] * 6, backward=False)
    with h5py.File(tmp_path / "b.hdf5", "a") as file:
        for key in ("obs", "next_obs", "actions", "rewards", "terminals"):
            rows = file[key][:-50]
            del file[key]
            file[key] = rows
    assert_same(read(tmp_path / "b.hdf5", "expert"), written[4:5])


def test_number_of_episodes_follows_the_recipe() -> None:
    spans = [Span(number, 10 * number, 10) for number in range(30)]

    def numbers(quality: Quality, episodes: int) -> list[int]:
        return [span.number for span in choose(spans, 300, quality, episodes)]

    assert numbers("random", 4) == [0, 1, 2, 3]
    assert numbers("medium", 4) == [13, 14, 15, 16]
    assert numbers("expert", 4) == [26, 27, 28, 29]
    assert numbers("medium", 1000) == list(range(10, 20))


def test_episode_longer_than_the_horizon_is_named(tmp_path: Path) -> None:
    write_buffer(tmp_path / "b.hdf5", [200, 201, 200])
    with pytest.raises(UserError, match="row 200 has 201 steps"):
        read(tmp_path / "b.hdf5", "expert")


def test_buffer_of_another_family_is_named(tmp_path: Path) -> None:
    write_buffer(tmp_path / "b.hdf5", [200] * 3)
    with pytest.raises(UserError, match=r"b.hdf5, episode 0: observations have shape \(200, 20\), ant-dir needs"):
        read(tmp_path / "b.hdf5", "random", WALKING)


@pytest.mark.parametrize("key", ["obs", "actions", "rewards", "terminals"])
def test_missing_column_is_named(key: str, tmp_path: Path) -> None:
    write_buffer(tmp_path / "b.hdf5", [200] * 3, without=(key,))
    with pytest.raises(UserError, match=f"no `{key}`"):
        read(tmp_path / "b.hdf5", "expert")


def test_other_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.hdf5").write_text("no buffer")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        read(tmp_path / "text.hdf5", "expert")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        read(tmp_path / "missing.hdf5", "expert")
    write_buffer(tmp_path / "b.hdf5", [200] * 3)
    with pytest.raises(UserError, match="none called mixed"):
        read(tmp_path / "b.hdf5", "mixed")
    with h5py.File(tmp_path / "b.hdf5", "a") as file:
        file["next_obs"][:] = 0.0
    with pytest.raises(UserError, match="next_obs lead from no row"):
        read(tmp_path / "b.hdf5", "expert")


def test_error_without_h5py_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'promptdiffuser\[interchange\]'"):
        read(tmp_path / "b.hdf5", "expert")


def test_names_of_published_files() -> None:
    assert file_task("buffers_ant_dir_train_41_sub_task_0.hdf5") == 41
    assert file_task("env_ant_dir_train_task41.pkl") is None
