"""Minari datasets (https://minari.farama.org) from and to ours.

**One Minari dataset a task and quality**, `promptdiffuser/FAMILY/task-7-expert-v0`. A Minari dataset has one
environment, which `recover_environment` makes again, and one pair of reference returns for its normalised scores; both
belong to a task here. `minari.combine_datasets` refuses to join tasks for the same reason.

**The final observation.** Minari keeps the observation after the last action, our store does not. It is never made up:
either the episode runs again in the simulator from its seed with its recorded actions, which must give back every
recorded observation bit by bit and ends with the missing one ("simulated"); or, for episodes that were not simulated
here, the last transition is left out, which shortens the episode by a step and its return by that step's reward
("last-transition-dropped"). The dataset's metadata says which. Only the first is undone by reading the dataset again.

**Ends.** `terminations` is true at the last step where the simulator says so, else `truncations` is; after a dropped
transition it is always `truncations`, as the kept steps end before the environment did.

Axes: N episodes, L steps of an episode, S observation, A action.
"""

import copy
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.formats.trajectories import Trajectory, assemble
from promptdiffuser.data.manifest import PHYSICS_PACKAGE
from promptdiffuser.data.parts import episodes_per_part
from promptdiffuser.data.store import Dataset
from promptdiffuser.errors import UserError
from promptdiffuser.tasks.experts import QUALITIES, Quality
from promptdiffuser.tasks.family import LearnedExpert, TaskEnv, TaskFamily

INSTALL = "Minari is not installed; `pip install 'promptdiffuser[interchange]'` installs it"
METADATA_KEY = "promptdiffuser"
"""Where a dataset's metadata say what only we know: family, task, quality, goal, the digest it was made from."""
REQUIRED_PACKAGES = ("promptdiffuser", PHYSICS_PACKAGE)
FinalObservation = Literal["simulated", "last-transition-dropped"]


@dataclass(frozen=True)
class Credits:
    """What Minari asks of a dataset's makers; nothing is written where nothing is given."""

    author: str | None = None
    author_email: str | None = None
    code_permalink: str | None = None
    """Address of the code that made the data, at one version."""


@dataclass(frozen=True)
class Origin:
    """Which of our episodes a Minari dataset holds, as its metadata say."""

    family: str | None
    task: int | None
    quality: Quality | None


def minari_id(family: TaskFamily, task: int, quality: Quality, version: int = 0) -> str:
    """Return the name of an exported dataset."""
    return f"promptdiffuser/{family.name}/task-{task}-{quality}-v{version}"


def export_minari(
    dataset: Dataset,
    task: int,
    quality: Quality,
    final_observation: FinalObservation = "simulated",
    version: int = 0,
    credits_: Credits | None = None,
) -> str:
    """Write the episodes of one task and quality as a Minari dataset and return its id.

    It lies where Minari looks for datasets: below MINARI_DATASETS_PATH, or ~/.minari/datasets. One file of ours is in
    memory at a time. A dataset that could not be finished is removed.

    Raises:
        UserError: Minari is not installed, the dataset exists already, there are no such episodes, or an episode does
            not come out of the simulator as it was recorded.
    """
    minari = _minari()
    from minari.storage.datasets_root_dir import get_dataset_path

    family, name = dataset.family, minari_id(dataset.family, task, quality, version)
    folder = get_dataset_path(name)
    if folder.exists():
        raise UserError(f"Minari dataset {name} exists in {folder}; delete it or export as another --version")
    env = family.make(task)
    env.spec = environment_spec(family, task)
    written: Any = None
    try:
        for part in dataset.parts([task], quality):
            buffers = [_buffer(family, env, part, row, final_observation) for row in range(len(part))]
            if written is None:
                with warnings.catch_warnings():  # about every field that `Credits` leaves empty
                    warnings.simplefilter("ignore", UserWarning)
                    written = minari.create_dataset_from_buffers(
                        name,
                        buffers,
                        env=env,
                        observation_space=env.observation_space,
                        action_space=env.action_space,
                        description=_description(dataset, task, quality, final_observation),
                        requirements=[
                            f"{package}=={dataset.manifest.versions[package]}" for package in REQUIRED_PACKAGES
                        ],
                        data_format="hdf5",
                        **_algorithm(dataset, quality),
                        **_credited(credits_ or Credits()),
                    )
            else:
                written.update_dataset_from_buffer(buffers)
            first = written.total_episodes - len(part)
            written.storage.update_episode_metadata(
                [{"success": bool(success)} for success in part.successes], range(first, first + len(part))
            )
        written.storage.update_metadata(_metadata(dataset, task, quality, final_observation))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        env.close()
    return name


def read_origin(name: str) -> Origin:
    """Return what the metadata of a local Minari dataset say of our family, task and quality."""
    ours = _load(name).storage.metadata.get(METADATA_KEY)
    if not isinstance(ours, dict):
        return Origin(None, None, None)
    return Origin(ours.get("family"), ours.get("task"), ours.get("quality"))


def read_minari(name: str, family: TaskFamily, task: int) -> Iterator[Episodes]:
    """Yield the episodes of a local Minari dataset as those of one task, as many at a time as a file of ours holds.

    The observation after the last action is not kept. An episode is successful if its metadata say so or any of its
    `infos["success"]` is true. Seeds are the dataset's; where it has none, `assemble` derives one.

    Raises:
        UserError: Minari is not installed, there is no such dataset here, its spaces are not the family's, or its
            episodes are not (`assemble`).
    """
    dataset = _load(name)
    _check_spaces(name, family, dataset)
    size, indices = episodes_per_part(family), [int(index) for index in dataset.episode_indices]
    for start in range(0, len(indices), size):
        batch = indices[start : start + size]
        records = dataset.storage.get_episode_metadata(batch)
        found = zip(dataset.iterate_episodes(batch), records, strict=True)
        yield assemble(name, family, task, [_trajectory(episode, record) for episode, record in found])


def environment_spec(family: TaskFamily, task: int) -> Any:
    """Return the Gymnasium specification of one task, which can be written as JSON and made anywhere."""
    family.register_environment()
    spec = copy.deepcopy(gymnasium.spec(family.gymnasium_id))
    spec.kwargs["task"] = task
    return spec


def _minari() -> Any:
    try:
        import h5py  # noqa: F401  Minari imports it where it is first needed
        import minari
    except ImportError as error:
        raise UserError(INSTALL) from error
    return minari


def _load(name: str) -> Any:
    minari = _minari()
    from minari.dataset.minari_storage import MinariStorage
    from minari.storage.datasets_root_dir import get_dataset_path

    path = get_dataset_path(name) / "data"
    if not path.is_dir():
        raise UserError(f"there is no Minari dataset {name} in {path.parent}; get it with `minari download {name}`")
    try:
        # Minari makes the environment of a dataset without spaces to learn them, and an environment is a program: its
        # entry point can be any function of any module.
        if not {"observation_space", "action_space"} <= MinariStorage.read_raw_metadata(path).keys():
            raise UserError(f"Minari dataset {name} does not say its spaces; it is refused")
        return minari.load_dataset(name)
    except (ValueError, KeyError, TypeError, AssertionError, OSError, NotImplementedError) as error:
        raise UserError(f"Minari dataset {name} cannot be read: {error}") from error


def _check_spaces(name: str, family: TaskFamily, dataset: Any) -> None:
    spaces = {"observations": dataset.observation_space, "actions": dataset.action_space}
    dims = {"observations": family.observation_dim, "actions": family.action_dim}
    for kind, space in spaces.items():
        if not isinstance(space, Box) or space.shape != (dims[kind],):
            raise UserError(f"Minari dataset {name}: {kind} are {space}, {family.name} needs a Box of ({dims[kind]},)")
    bounds = spaces["actions"]
    if not (np.all(bounds.low == -1.0) and np.all(bounds.high == 1.0)):
        raise UserError(f"Minari dataset {name}: actions are {bounds}, those of {family.name} lie in [-1, 1]")


def _trajectory(episode: Any, record: dict[str, Any]) -> Trajectory:
    infos = episode.infos or {}
    seed = record.get("seed")
    return Trajectory(
        number=int(episode.id),
        observations=np.asarray(episode.observations)[: len(episode)],
        actions=np.asarray(episode.actions),
        rewards=np.asarray(episode.rewards),
        seed=None if seed is None else int(seed),
        success=bool(record.get("success", False)) or bool(np.any(infos.get("success", False))),
    )


def _buffer(family: TaskFamily, env: TaskEnv, part: Episodes, row: int, final_observation: FinalObservation) -> Any:
    from minari.data_collector import EpisodeBuffer

    length = int(part.lengths[row])
    observations, terminated = part.observations[row, :length], False
    if final_observation == "simulated":
        last, terminated = _simulate_end(family, env, part, row)
        observations = np.concatenate([observations, last[None]])
    elif length > 1:
        length -= 1
    else:
        raise UserError(
            f"an episode of task {part.tasks[row]} has one step, nothing is left of it without its last transition"
        )
    at_end = np.arange(length) == length - 1
    return EpisodeBuffer(
        seed=int(part.seeds[row]),
        observations=observations,
        actions=part.actions[row, :length],
        rewards=part.rewards[row, :length],
        terminations=at_end & terminated,
        truncations=at_end & (not terminated),
        infos={},
    )


def _simulate_end(family: TaskFamily, env: TaskEnv, part: Episodes, row: int) -> tuple[Any, bool]:
    """Run an episode again and return the observation after its last action and whether that ended it."""
    observation, _ = env.reset(seed=int(part.seeds[row]))
    terminated = False
    for step in range(int(part.lengths[row])):
        if terminated or not np.array_equal(observation, part.observations[row, step]):
            raise UserError(
                f"the simulator does not repeat the episode of task {part.tasks[row]} with seed {part.seeds[row]}: "
                f"step {step} differs, so it was made elsewhere; leave its last transition out with "
                "--final-observation last-transition-dropped"
            )
        observation, _, terminated, _, _ = env.step(part.actions[row, step])
    return observation, bool(terminated)


def _metadata(dataset: Dataset, task: int, quality: Quality, final_observation: FinalObservation) -> dict[str, Any]:
    record = dataset.manifest.tasks[task]
    return {
        "ref_min_score": record.random_return,
        "ref_max_score": record.expert_return,
        METADATA_KEY: {
            "family": dataset.manifest.family,
            "task": task,
            "task_label": dataset.family.label(task),
            "goal": list(record.goal),
            "quality": quality,
            "final_observation": final_observation,
            "dataset_digest": dataset.manifest.digest,
            "commands": list(dataset.manifest.commands),
            "versions": dataset.manifest.versions,
        },
    }


def _description(dataset: Dataset, task: int, quality: Quality, final_observation: FinalObservation) -> str:
    end = {
        "simulated": "The observation after the last action was computed by running each episode again.",
        "last-transition-dropped": "The last transition of each episode is left out, as the observation after it is "
        "not known: episodes are one step shorter than they were, and their returns lack that step's reward.",
    }[final_observation]
    how = f" ({QUALITIES[quality]})" if dataset.manifest.seed is not None else ""
    return (
        f"Task {task} ({dataset.family.label(task)}) of the task family {dataset.manifest.family}, quality {quality}"
        f"{how}. Reference scores: 0 is the mean return of uniformly random actions on this task, 1 the expert's. {end}"
    )


def _algorithm(dataset: Dataset, quality: Quality) -> dict[str, str]:
    """Return the name of what made the episodes, which is not known of imported ones."""
    if dataset.manifest.seed is None:
        return {}
    maker = "PPO conditioned on the goal" if isinstance(dataset.family.expert, LearnedExpert) else "scripted policy"
    return {"algorithm_name": "uniformly random actions" if quality == "random" else f"{maker}, {quality}"}


def _credited(credits_: Credits) -> dict[str, str]:
    given = {
        "author": credits_.author,
        "author_email": credits_.author_email,
        "code_permalink": credits_.code_permalink,
    }
    return {name: value for name, value in given.items() if value is not None}
