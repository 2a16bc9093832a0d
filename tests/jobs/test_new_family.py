"""A task family added as CONTRIBUTING says: one file, then `python jobs/experts.py NAME`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.ray

FAMILY = '''"""point: a point on a line that is rewarded for being at a hidden place, 6 tasks."""

import numpy as np
from gymnasium.spaces import Box

from promptdiffuser.tasks.family import ScriptedExpert, TaskEnv, TaskFamily, register


class PointEnv(TaskEnv):
    diverged = False

    def __init__(self, task):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.set_task(task)

    def set_task(self, task):
        self.goal = place(task)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.speed = self.np_random.uniform(-0.1, 0.1), 0.0
        return self.observation, {}

    def step(self, action):
        self.speed = float(np.clip(action[0], -1, 1)) / 2
        self.x += self.speed
        return self.observation, -abs(self.x - self.goal), False, False, {}

    @property
    def observation(self):
        return np.array([self.x, self.speed], np.float32)


def place(task):
    return (1.0 + task) * (-1) ** task


def controller(task):
    return lambda seen: np.array([2 * (place(task) - seen[0])])


register(
    TaskFamily(
        name="point",
        gymnasium_id="PromptDiffuser/Point-v0",
        entry_point=PointEnv,
        observation_dim=2,
        action_dim=1,
        horizon=20,
        train_tasks=(0, 1, 2, 3),
        validation_tasks=(4,),
        test_tasks=(5,),
        target_return=0.0,
        return_scale=50.0,
        goal=lambda task: (place(task),),
        label=lambda task: f"{place(task):g} m",
        expert=ScriptedExpert(controller, lambda observations, goals: observations.astype(float)),
    )
)
'''


def test_a_new_family_has_experts_references_a_recipe_and_data(tmp_path: Path) -> None:
    for folder in ("platform", "jobs", "analysis"):
        shutil.copytree(tiny.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    tasks = tmp_path / "platform" / "promptdiffuser" / "tasks"
    (tasks / "families" / "point.py").write_text(FAMILY)
    environment = tiny.environment(tmp_path) | {"PYTHONPATH": str(tmp_path / "platform"), "COLUMNS": "200"}

    def run(job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"jobs/{job}.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)

    def succeed(job: str, *arguments: str) -> str:
        done = run(job, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "--collection.episodes-per-task" in succeed("collect", "point", "--help")
    succeed("experts", "point")
    file = tasks / "reference_returns" / "point.json"
    made = json.loads(file.read_text())
    columns = {name: index for index, name in enumerate(made["columns"])}
    assert len(made["mean_action"]) == 1
    for row in made["tasks"].values():
        assert row[columns["zero_return"]] < row[columns["expert_return"]]

    # Files from before the policies of one action were references.
    kept = ["random_return", "expert_return", "expert_success"]
    old = {task: [row[columns[name]] for name in kept] for task, row in made["tasks"].items()}
    file.write_text(json.dumps(made | {"columns": kept, "tasks": old}))
    collect = ("collect", "point", "--collection.episodes-per-task", "5", "--cluster.rollout-actors", "1")
    refused = run(*collect)
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "`python jobs/experts.py point --references-only` adds them" in line
    succeed("experts", "point", "--references-only")
    assert json.loads(file.read_text()) == made

    dataset = tmp_path / succeed(*collect).strip().splitlines()[-1]
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["family"] == "point"
    assert set(manifest["tasks"]) == set("012345")
