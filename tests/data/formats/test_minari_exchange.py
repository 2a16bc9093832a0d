"""Minari datasets, written and read by the real package."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.formats.minari_io import (
    Credits,
    Origin,
    environment_spec,
    export_minari,
    read_minari,
    read_origin,
)
from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.data.windows import cut_pool_pieces
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from tests.data.formats.samples import FAMILY, simulate, simulated_dataset
from tests.data.synthetic import assert_equal

NAME = "promptdiffuser/cheetah-vel/task-7-random-v0"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulated_dataset(tmp_path_factory.mktemp("ours") / "dataset")


@pytest.fixture(scope="module")
def exported(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export one quality; tests that only read share it."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        assert export_minari(dataset, 7, "random", credits_=Credits(author="A. Tester")) == NAME
    return folder


@pytest.fixture
def here(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(exported))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def read(name: str = NAME, task: int = 7) -> Episodes:
    return Episodes.concatenate(list(read_minari(name, FAMILY, task)))


@pytest.mark.usefixtures("here")
def test_round_trip_is_equal(dataset: Dataset) -> None:
    assert_equal(read(), dataset.read([7], "random"))
    assert read_origin(NAME) == Origin("cheetah-vel", 7, "random")


@pytest.mark.usefixtures("here")
def test_final_observation_is_the_simulators(dataset: Dataset) -> None:
    part = dataset.read([7], "random")
    env = FAMILY.make(7)
    for episode in minari.load_dataset(NAME):
        env.reset(seed=int(part.seeds[episode.id]))
        for action in part.actions[episode.id]:
            last, *_ = env.step(action)
        assert episode.observations.shape == (201, FAMILY.observation_dim)
        np.testing.assert_array_equal(episode.observations[-1], last)
        assert not episode.terminations.any()
        assert np.flatnonzero(episode.truncations).tolist() == [199]


@pytest.mark.usefixtures("here")
def test_metadata_say_what_a_user_of_minari_needs(dataset: Dataset) -> None:
    loaded = minari.load_dataset(NAME)
    metadata = loaded.storage.metadata
    record = dataset.manifest.tasks[7]
    assert metadata["ref_min_score"] == record.random_return
    assert metadata["ref_max_score"] == record.expert_return
    assert minari.get_normalized_score(loaded, np.array([record.expert_return])) == [1.0]
    assert metadata["author"] == {"A. Tester"}
    assert metadata["algorithm_name"] == "uniformly random actions"
    assert metadata["requirements"] == ["promptdiffuser==0.1.0", "mujoco==3.3.0"]
    assert metadata["promptdiffuser"]["final_observation"] == "simulated"
    assert metadata["promptdiffuser"]["dataset_digest"] == dataset.manifest.digest
    assert "author_email" not in metadata
    assert "code_permalink" not in metadata


@pytest.mark.usefixtures("here")
def test_environment_is_recovered_in_a_process_that_never_imported_us(dataset: Dataset) -> None:
    code = (
        "import sys, minari\n"
        f"env = minari.load_dataset({NAME!r}).recover_environment()\n"
        "observation, _ = env.reset(seed=int(sys.argv[1]))\n"
        "print(env.unwrapped.goal, env.spec.max_episode_steps, *observation.tolist())"
    )
    part = dataset.read([7], "random")
    result = subprocess.run(
        [sys.executable, "-c", code, str(part.seeds[0])], capture_output=True, text=True, timeout=120, check=True
    )
    goal, steps, *observation = map(float, result.stdout.split())
    assert (goal, steps) == (FAMILY.goal(7)[0], 200.0)
    np.testing.assert_array_equal(np.array(observation, np.float32), part.observations[0, 0])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_specification_can_be_written_as_json(name: str) -> None:
    family = FAMILIES[name]
    spec = environment_spec(family, family.tasks[-1])
    again = gymnasium.envs.registration.EnvSpec.from_json(spec.to_json())
    assert again.kwargs["task"] == family.tasks[-1]
    assert again.max_episode_steps == family.horizon
    assert gymnasium.envs.registration.load_env_creator(again.entry_point) is family.entry_point
    assert "task" not in gymnasium.spec(family.gymnasium_id).kwargs


def test_dropped_transition_is_marked(dataset: Dataset, empty: Path) -> None:
    name = export_minari(dataset, 7, "random", "last-transition-dropped", version=3)
    assert name.endswith("-v3")
    part = dataset.read([7], "random")
    loaded = minari.load_dataset(name)
    assert loaded.storage.metadata["promptdiffuser"]["final_observation"] == "last-transition-dropped"
    assert "last transition" in loaded.storage.metadata["description"]
    for episode in loaded:
        assert len(episode) == 199
        np.testing.assert_array_equal(episode.observations, part.observations[episode.id])
        np.testing.assert_array_equal(episode.rewards, part.rewards[episode.id, :199])
        assert np.flatnonzero(episode.truncations).tolist() == [198]
    assert read(name).lengths.tolist() == [199] * 3


def test_episode_that_was_made_elsewhere_is_not_given_an_invented_end(tmp_path: Path, empty: Path) -> None:
    episodes = simulate(7, [0, 1])
    episodes.observations[1, 5] += 1e-3
    writer = DatasetWriter(tmp_path / "dataset", FAMILY, "a test")
    writer.add("random", episodes)
    with pytest.raises(UserError, match=r"task 7 with seed 1: step 5 differs.*last-transition-dropped"):
        export_minari(writer.commit(), 7, "random")
    assert not list(empty.rglob("*.hdf5")), "a dataset that could not be finished was left behind"


def test_end_of_an_episode_is_a_termination_where_the_simulator_ends_it(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Falling(FAMILY.entry_point):  # type: ignore[misc, name-defined]
        """Ends after twelve steps."""

        def reset(self, **options: object) -> object:
            self.steps = 0
            return super().reset(**options)

        def step(self, action: np.ndarray) -> tuple[object, ...]:
            self.steps += 1
            observation, reward, _, truncated, info = super().step(action)
            return observation, reward, self.steps == 12, truncated, info

    episodes = simulate(7, [0])
    for name in ("observations", "actions", "rewards"):
        getattr(episodes, name)[:, 12:] = 0.0
    writer = DatasetWriter(tmp_path / "dataset", FAMILY, "a test", seed=0)
    writer.add("random", dataclasses.replace(episodes, lengths=np.array([12]), successes=np.array([True])))
    dataset = writer.commit()
    falling = dataclasses.replace(FAMILY, entry_point=Falling)
    monkeypatch.setattr(Dataset, "family", property(lambda self: falling))
    name = export_minari(dataset, 7, "random")
    (episode,) = minari.load_dataset(name)
    assert np.flatnonzero(episode.terminations).tolist() == [11]
    assert not episode.truncations.any()
    assert read(name).successes.tolist() == [True]


def test_existing_dataset_is_not_overwritten(dataset: Dataset, empty: Path) -> None:
    export_minari(dataset, 7, "medium", "last-transition-dropped")
    with pytest.raises(UserError, match="exists"):
        export_minari(dataset, 7, "medium")
    assert minari.load_dataset("promptdiffuser/cheetah-vel/task-7-medium-v0").total_episodes == 3


def test_missing_datasets_and_qualities_are_named(dataset: Dataset, empty: Path) -> None:
    with pytest.raises(UserError, match=r"no Minari dataset other/thing-v0 .*minari download other/thing-v0"):
        read("other/thing-v0")
    with pytest.raises(UserError, match="no expert episodes"):
        export_minari(dataset, 7, "expert")


def foreign(
    name: str,
    observation_dim: int = 20,
    bound: float = 1.0,
    steps: int = 50,
    seeds: Sequence[int | None] = (None, None),
) -> str:
    """Make a Minari dataset as somebody else would."""
    generator = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            seed=seed,
            observations=generator.normal(size=(steps + 1, observation_dim)),
            actions=generator.uniform(-1, 1, (steps, 6)),
            rewards=generator.normal(size=steps).tolist(),
            terminations=[False] * steps,
            truncations=[False] * (steps - 1) + [True],
            infos={"success": np.arange(steps + 1) == 30 * number},
        )
        for number, seed in enumerate(seeds, 1)
    ]
    with pytest.warns(UserWarning, match="set to None"):
        minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=Box(-np.inf, np.inf, (observation_dim,), np.float64),
            action_space=Box(-bound, bound, (6,), np.float64),
        )
    return name


@pytest.mark.usefixtures("empty")
def test_dataset_of_somebody_else_is_read() -> None:
    episodes = read(foreign("theirs/cheetah-v1"))
    assert episodes.lengths.tolist() == [50, 50]
    assert len(set(episodes.seeds.tolist())) == 2
    assert episodes.successes.tolist() == [True, False]
    assert read_origin("theirs/cheetah-v1") == Origin(None, None, None)


SEEDS: dict[str, tuple[int | None, ...]] = {
    "missing": (None,) * 4,
    "equal": (42,) * 4,
    "some missing": (None, 0, 1, None),
    "some equal": (3, 7, 3, 5),
    "equal or missing": (None, 42, 42, None),
    "numbers of other episodes": (1, None, 3, None),
    "large": (2**31, 2**63 - 1, 2**63, 2**64 - 1),
    "negative": (-1, -1, -(2**63), 0),
}


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("name", SEEDS)
def test_every_episode_has_a_seed_of_its_own_which_is_the_original_where_that_is_unique(
    name: str, tmp_path: Path
) -> None:
    originals = SEEDS[name]
    minari_name = foreign("theirs/seeds-v0", seeds=originals)
    datasets = []
    for folder in ("first", "second"):
        writer = DatasetWriter(tmp_path / folder, FAMILY, "a test")
        for episodes in read_minari(minari_name, FAMILY, 7):
            writer.add("expert", episodes)
        datasets.append(writer.commit())
    assert len({dataset.manifest.digest for dataset in datasets}) == 1
    episodes = datasets[0].read([7])
    seeds = episodes.seeds.tolist()
    assert len(set(seeds)) == len(seeds)
    for seed, original in zip(seeds, originals, strict=True):
        if original is not None and 0 <= original < 2**63 and originals.count(original) == 1:
            assert seed == original
    drawn = cut_pool_pieces(episodes, 5, 8)["transition_rewards"]
    steps = {tuple((episodes.rewards[row] == value).argmax() for value in drawn[row]) for row in range(len(seeds))}
    assert len(steps) == len(seeds), "the same steps are drawn from several episodes"


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"observation_dim": 17}, r"Box of \(20,\)"),
        ({"bound": 0.4}, r"lie in \[-1, 1\]"),
        ({"steps": 201}, "201 steps"),
    ],
)
def test_dataset_that_does_not_fit_is_named(options: dict[str, float], word: str) -> None:
    with pytest.raises(UserError, match=f"theirs/other-v0.*{word}"):
        read(foreign("theirs/other-v0", **options))


def test_dataset_that_would_make_its_own_environment_is_refused(empty: Path) -> None:
    # Without spaces Minari makes the environment, whose entry point may be any function.
    metadata_file = empty / foreign("theirs/program-v0") / "data" / "metadata.json"
    metadata = json.loads(metadata_file.read_text())
    del metadata["action_space"]
    proof = empty / "proof"
    metadata["env_spec"] = json.dumps(
        {"id": "Any-v0", "entry_point": "pathlib:Path.touch", "kwargs": {"self": str(proof)}}
    )
    metadata_file.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="does not say its spaces"):
        read("theirs/program-v0")
    assert not proof.exists()


def test_error_without_minari_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"pip install 'promptdiffuser\[interchange\]'"):
        read()
