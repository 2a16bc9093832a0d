"""Trained models outside the pipeline: act with an adapted policy, generate prompts from episodes.

`promptdiffuser.load_policy` and `promptdiffuser.load_diffuser` are these functions. They need no Ray, and MLflow only
where a run is named by its id.

Axes: S observation, A action.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.formats.trajectories import Trajectory, assemble
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import PromptPool, Segments, cut_pool_pieces
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.errors import UserError
from promptdiffuser.methods import get_method
from promptdiffuser.methods.folders import Origin, load_adaptation, read_origin
from promptdiffuser.methods.prompt_diffuser import noise_address
from promptdiffuser.models.backbone import Prompt
from promptdiffuser.rollout.policies import AdaptedPolicies, AdaptedPolicy, PromptedPolicy
from promptdiffuser.rollout.protocol import EvaluationRequest
from promptdiffuser.rollout.stepping import clipped
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.family import Floats
from promptdiffuser.training import model_folders
from promptdiffuser.training.checkpoint import MANIFEST

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_FINGERPRINTED = re.compile(r"(.+)-[0-9a-f]{8}")
_ROW = np.zeros(1, np.intp)
"""The one row that a policy plays."""


def load_policy(
    source: str | Path, method: str | None = None, task: int | None = None, device: torch.device | str = "cpu"
) -> "Policy":
    """Load an adapted policy.

    Args:
        source: The folder of an experiment, of a method's adaptations in it, or of the policy itself
            (`outputs/EXPERIMENT`, `.../adaptations/METHOD-xxxxxxxx`, `.../task-N`); or the MLflow run id of a method,
            looked up in `MLFLOW_TRACKING_URI`, else ./mlflow.db.
        method: The method, where the source is an experiment.
        task: The target task, where the source holds several.
        device: Where the policy computes.

    Raises:
        UserError: There is no such policy, the source leaves open which one is meant, or the policy or its backbone is
            missing, broken or of an earlier version.
    """
    if _is_run(source):
        from promptdiffuser.reporting.run_folders import adaptations_of_run  # MLflow takes seconds to import

        folder = adaptations_of_run(str(source))
    else:
        folder = Path(source)
    folder = _policy_folder(folder, method, task)
    origin = read_origin(folder)
    for name, wanted in (("method", method), ("task", task)):
        if wanted not in (None, getattr(origin, name)):
            raise UserError(f"{folder} is a policy of {name} {getattr(origin, name)}, not {wanted}")
    backbone, normaliser = model_folders.load_backbone(
        origin.backbone_folder(folder), get_family(origin.family), torch.device("cpu")
    )
    return Policy(
        origin, load_adaptation(folder, backbone, get_method(origin.method)).policy, normaliser, torch.device(device)
    )


class Policy:
    """An adapted policy that plays one episode at a time: `reset`, then `act` and `observe` in turn.

    Observations and rewards are in the environment's units. Its actions are those of an evaluation in fp32.
    """

    def __init__(self, origin: Origin, adapted: AdaptedPolicy, normaliser: Normaliser, device: torch.device) -> None:
        """Take an adapted policy and the normaliser of its backbone; it computes on the device."""
        self.family, self.task, self.method = get_family(origin.family), origin.task, origin.method
        self.target_return = origin.target_return
        """Return that an episode is asked for if none is given, in the unit of the reward."""
        self._origin, self._backbone, self._normaliser, self._device = origin, adapted.backbone, normaliser, device
        self.prompts = adapted.prompts
        """Its prompts, in the networks' units."""
        self._playing: PromptedPolicy | None = None
        self._steps, self._acted = 0, False

    def with_prompts(self, prompts: Prompt) -> "Policy":
        """Return the policy with other prompts, such as those of a diffuser trained through the same backbone."""
        return Policy(self._origin, AdaptedPolicy(self._backbone, prompts), self._normaliser, self._device)

    def reset(self, target_return: float | None = None, prompt: int = 0) -> None:
        """Begin an episode.

        Args:
            target_return: Return asked for at the first step, in the unit of the reward; if not given, the one that the
                evaluation asked for.
            prompt: Which of the prompts to act behind.

        Raises:
            UserError: There is no such prompt.
        """
        if not 0 <= prompt < len(self.prompts):
            raise UserError(f"there is no prompt {prompt}; the policy has prompts 0 to {len(self.prompts) - 1}")
        target = self.target_return if target_return is None else target_return
        request = EvaluationRequest(self.task, 0, self.method, prompt, episode=0, target_return=target)
        adapted = AdaptedPolicy(self._backbone, self.prompts)
        policies = AdaptedPolicies(self._normaliser, {self.method: {self.task: adapted}})
        self._playing = PromptedPolicy(self.family, policies, self._backbone, device=self._device)
        self._playing.begin(1)
        self._playing.start(_ROW, [request])
        self._steps, self._acted = 0, False

    def act(self, observation: ArrayLike) -> Floats:
        """Return the action (A,), clipped to [-1, 1] as every environment of the families takes it.

        Args:
            observation: (S,) of the family's environment.

        Raises:
            UserError: The observation has another shape, the action is not finite, the episode has not begun or is
                over, or the reward of the step before was not observed.
        """
        if self._acted:
            raise UserError("call observe(reward) after each step, the policy acts by the return that is left")
        if self._playing is None or self._steps == self.family.horizon:
            raise UserError(f"call reset() first; an episode of {self.family.name} has {self.family.horizon} steps")
        observation_S = np.asarray(observation, np.float32)
        if observation_S.shape != (self.family.observation_dim,):
            needed = (self.family.observation_dim,)
            raise UserError(f"the observation has shape {observation_S.shape}, {self.family.name} needs {needed}")
        action_A: Floats = self._playing.act(observation_S[None])[0]
        if not np.isfinite(action_A).all():
            raise UserError(f"the policy's action is not finite at step {self._steps}")
        self._steps, self._acted = self._steps + 1, True
        return clipped(action_A)

    def observe(self, reward: float) -> None:
        """Take the reward of the last action.

        Raises:
            UserError: There was no action since the last reward.
        """
        if self._playing is None or not self._acted:
            raise UserError("call act() before observe(reward)")
        self._playing.observe(np.array([reward], np.float32))
        self._acted = False


def load_diffuser(
    source: str | Path, diffuser: str | None = None, device: torch.device | str = "cpu"
) -> "PromptGenerator":
    """Load a trained Prompt Diffuser.

    Args:
        source: The folder of an experiment, of a diffuser's training or of the diffuser itself
            (`outputs/EXPERIMENT`, `.../diffuser-NAME-xxxxxxxx`, `.../model`), or of its few-shot training on a task
            (`.../adaptations/METHOD-xxxxxxxx/task-N`); or the MLflow run id of a multi-task training, looked up in
            `MLFLOW_TRACKING_URI`, else ./mlflow.db.
        diffuser: Its name, such as `published` or `context`, where the source is an experiment.
        device: Where it computes.

    Raises:
        UserError: There is no such diffuser, the source leaves open which one is meant, or it is broken or of an
            earlier version.
    """
    if _is_run(source):
        from promptdiffuser.reporting.run_folders import diffuser_of_run  # MLflow takes seconds to import

        folder = diffuser_of_run(str(source))
    else:
        folder = Path(source)
    if (folder / "model").is_dir():
        folder /= "model"
    elif not (folder / MANIFEST).is_file():
        folder = _only(folder, "diffuser-", diffuser, "diffuser") / "model"
    data = model_folders.load_diffuser_data(folder)
    return PromptGenerator(model_folders.load_diffuser(folder, data.family, torch.device(device)), data)


class PromptGenerator:
    """A trained diffuser that generates prompts of a task from a few of its episodes."""

    def __init__(self, diffuser: Diffuser, data: model_folders.DiffuserData) -> None:
        """Take a diffuser and how episodes are prepared for it."""
        self.diffuser, self.family, self._data = diffuser, data.family, data

    def generate(
        self,
        few_shot: Episodes | Sequence[Any],
        num_prompts: int = 1,
        seed: int = 0,
        task: int | None = None,
    ) -> Segments:
        """Generate prompts: the conditions come from the episodes in turn, the task context from all of them.

        Args:
            few_shot: Episodes of one task: `Episodes`, as `Dataset.read` returns them, or one mapping or object per
                episode, such as Minari's `EpisodeData`, with `observations` (L or L + 1, S), `actions` (L, A) and
                `rewards` (L,) in the environment's units.
            num_prompts: Prompts to generate.
            seed: Of the noise; the noise of a prompt does not depend on the number of prompts.
            task: The episodes' task id, where they are no `Episodes`, which know it. Diffusers that see the goal need
                it, and it is part of the noise's seed; the family's first task if not given.

        Returns:
            (num_prompts, K*) prompts in the networks' units, for `Policy.with_prompts`. An experiment's seed gives the
            prompts that its methods generate.

        Raises:
            UserError: The episodes are of several tasks, too short, not finite or not of the family's dimensions; the
                diffuser sees the goal and no task is given.
        """
        if not isinstance(few_shot, Episodes):
            few_shot = self._assembled(few_shot, task)
        if len(set(few_shot.tasks.tolist())) != 1:
            raise UserError(
                f"few-shot episodes must be of one task, got those of tasks {sorted(set(few_shot.tasks.tolist()))}"
            )
        prompt_length, _ = self.diffuser.space.prompt_shape
        pieces = cut_pool_pieces(few_shot, prompt_length, self._data.context_transitions)
        pool = PromptPool.build(pieces, self._data.normaliser, self.diffuser.space.low.device)
        return self.diffuser.prompts_for(pool, num_prompts, *noise_address(seed, int(few_shot.tasks[0])))

    def _assembled(self, few_shot: Sequence[Any], task: int | None) -> Episodes:
        if task is None and self.diffuser.goals_UG is not None:
            raise UserError("this diffuser sees the goal of the task; name the task: generate(..., task=N)")
        task = self.family.tasks[0] if task is None else task
        found = [_trajectory(number, episode) for number, episode in enumerate(few_shot)]
        return assemble("few_shot", self.family, task, found)


def _trajectory(number: int, episode: Any) -> Trajectory:
    of = episode if isinstance(episode, Mapping) else vars(episode)
    if missing := {"observations", "actions", "rewards"} - of.keys():
        raise UserError(f"few_shot, episode {number}: it has no {' and no '.join(sorted(missing))}")
    observations, actions, rewards = (np.asarray(of[name]) for name in ("observations", "actions", "rewards"))
    if len(observations) == len(rewards) + 1:
        observations = observations[:-1]  # Minari also keeps the observation after the last action.
    return Trajectory(number, observations, actions, rewards)


def _is_run(source: str | Path) -> bool:
    """Tell whether a source is an MLflow run id; raises `UserError` if it is no folder either."""
    if Path(source).is_dir():
        return False
    if _RUN_ID.fullmatch(str(source)):
        return True
    raise UserError(f"there is no folder {source}, and it is no MLflow run id (32 hexadecimal digits)")


def _policy_folder(folder: Path, method: str | None, task: int | None) -> Path:
    """Return the folder of one policy in that of an experiment, of a method's adaptations, or of a task's."""
    if (folder / "adaptations").is_dir():
        folder = _only(folder / "adaptations", "", method, "method")
    tasks = sorted(int(found.parent.name.removeprefix("task-")) for found in folder.glob("task-*/policy"))
    if tasks:
        if task not in tasks:
            asked = "name a task" if task is None else f"there is none of task {task}"
            raise UserError(f"{folder} holds policies of tasks {', '.join(map(str, tasks))}; {asked}")
        folder /= f"task-{task}"
    return folder / "policy" if (folder / "policy").is_dir() else folder


def _only(folder: Path, prefix: str, name: str | None, kind: str) -> Path:
    """Return the one folder PREFIX+NAME-xxxxxxxx in a folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"{prefix}*")):
        if match := _FINGERPRINTED.fullmatch(path.name.removeprefix(prefix)):
            found.setdefault(match[1], []).append(path)
    if name not in found:
        asked = f"no {kind} {name!r}" if name is not None else f"several {kind}s, name one"
        raise UserError(f"{folder} has {asked}; known: {', '.join(found) or 'none'}")
    if len(found[name]) > 1:
        folders = ", ".join(path.name for path in found[name])
        raise UserError(f"{folder} has several {kind}s {name!r}, made with other settings; pass a folder: {folders}")
    return found[name][0]
