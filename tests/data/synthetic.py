"""Episodes and datasets whose numbers are drawn at random, for tests that need no simulator."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import Manifest, TaskRecord, package_versions
from promptdiffuser.data.store import file_record, write_part
from promptdiffuser.tasks.family import TaskFamily


def draw_episodes(
    family: TaskFamily, tasks: Sequence[int], lengths: Sequence[int] | None = None, seed: int = 0
) -> Episodes:
    """One episode for each entry of `tasks`; steps past an episode's length are zero, as the stepper leaves them."""
    rng = np.random.default_rng([seed, len(tasks)])
    lengths_N = np.array(lengths if lengths is not None else [family.horizon] * len(tasks), np.int64)
    valid_NT = np.arange(family.horizon) < lengths_N[:, None]
    shape = (len(tasks), family.horizon)
    observations = rng.normal(2.0, 3.0, (*shape, family.observation_dim)) * valid_NT[..., None]
    actions = rng.uniform(-1.0, 1.0, (*shape, family.action_dim)) * valid_NT[..., None]
    rewards = rng.normal(-0.5, 0.3, shape) * valid_NT
    return Episodes(
        tasks=np.array(tasks, np.int64),
        seeds=rng.integers(0, 2**31, len(tasks)),
        lengths=lengths_N,
        observations=observations.astype(np.float32),
        actions=actions.astype(np.float32),
        rewards=rewards.astype(np.float32),
    )


def write_dataset(
    folder: Path, family: TaskFamily, tasks: Sequence[int], episodes: int = 2, seed: int = 0
) -> dict[tuple[int, str], Episodes]:
    """Write a valid dataset folder and return its parts by task and quality."""
    parts = {
        (task, quality): draw_episodes(family, [task] * episodes, seed=seed + 1_000 * task + number)
        for task in tasks
        for number, quality in enumerate(("expert", "random"))
    }
    files = {}
    for (task, quality), part in parts.items():
        path = write_part(folder, quality, part)
        files[path.relative_to(folder).as_posix()] = file_record(path, task, quality, part.lengths)
    records = {
        task: TaskRecord(
            goal=family.goal(task),
            random_return=float(parts[task, "random"].returns.mean()),
            expert_return=float(parts[task, "expert"].returns.mean()),
            best_return=float(parts[task, "expert"].returns.max()),
        )
        for task in tasks
    }
    Manifest(
        family=family.name,
        observation_dim=family.observation_dim,
        action_dim=family.action_dim,
        horizon=family.horizon,
        seed=seed,
        command="a test",
        versions=package_versions(),
        tasks=records,
        files=files,
    ).write(folder)
    return parts
