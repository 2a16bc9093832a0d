"""Using trained models outside the pipeline: equal actions and prompts, and errors that name the remedy."""

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

import promptdiffuser
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.errors import UserError
from promptdiffuser.methods import METHODS, get_method
from promptdiffuser.methods.adaptation import Adaptation
from promptdiffuser.methods.backbones import backbone_config
from promptdiffuser.methods.cells import AdaptationCell
from promptdiffuser.methods.folders import Origin, load_adaptation, read_origin, save_adaptation
from promptdiffuser.methods.inputs import InputsBuilder
from promptdiffuser.models.adapters import add_adapters
from promptdiffuser.rollout.blocks import EvaluationBlock
from promptdiffuser.rollout.policies import AdaptedPolicies, AdaptedPolicy, PromptedPolicy
from promptdiffuser.rollout.protocol import EvaluationRequest, ProtocolConfig
from promptdiffuser.rollout.stepping import EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.tracking.names import FOLDER_TAG, METHOD_TAG, STAGE_TAG
from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.checkpoint import load_checkpoint, save_checkpoint
from promptdiffuser.training.model_folders import (
    build_diffuser,
    diffuser_document,
    load_backbone,
    save_backbone,
    save_diffuser,
)
from promptdiffuser.using import Policy
from tests.conftest import FAMILY, TARGETS
from tests.methods.conftest import CONTEXT_TRANSITIONS, DENOISER, NUM_PROMPTS, SETTINGS
from tests.rollout.synthetic_policies import TINY, tiny_backbone, tiny_pool

CPU, SEED = torch.device("cpu"), 1234
TASK, OTHER_TASK = TARGETS
ADAPTED = ("prompt-dt", "soft-prompt", "lora", "adapters", "mt-bc", "prompt-diffuser-multi-task")
SUFFIX = "0123abcd"
PAGE = Path(__file__).parents[1] / "docs" / "using-models.md"


@pytest.fixture(scope="module")
def experiment(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an experiment's folder as the pipeline writes it, with untrained models, for cheetah-vel."""
    folder = tmp_path_factory.mktemp("outputs") / "quickstart"
    shutil.copytree(str(small_dataset.location), folder / f"collect-{SUFFIX}" / "dataset")
    normaliser = Normaliser.fit(small_dataset.parts(FAMILY.train_tasks), FAMILY.return_scale)
    backbones = {}
    for variant in {METHODS[name].backbone for name in ADAPTED}:
        config = backbone_config(variant, TINY)
        weights = tiny_backbone(FAMILY, config=config).state_dict()
        document = {"family": FAMILY.name, "config": asdict(config)}
        backbones[variant] = save_backbone(folder / f"{variant}-{SUFFIX}" / "model", weights, document, normaliser)
    builder = InputsBuilder(small_dataset, tiny_backbone(FAMILY), normaliser, SETTINGS)
    space = PromptSpace.fit(normaliser, builder.training.pool.prompts, FAMILY.horizon)
    for name, with_context in (("published", False), ("context", True)):
        diffuser = build_diffuser(DENOISER, DiffusionConfig(), space, FAMILY, with_context, "test")
        document = diffuser_document(FAMILY, DENOISER, DiffusionConfig(), with_context, CONTEXT_TRANSITIONS)
        target = folder / f"diffuser-{name}-{SUFFIX}" / "model"
        save_diffuser(target, dict(diffuser.denoiser.state_dict()), document, space, normaliser)
    for name in ADAPTED:
        method = METHODS[name]
        diffuser_folder = folder / f"diffuser-{method.diffuser}-{SUFFIX}" / "model" if method.diffuser else None
        for task in TARGETS if name == "prompt-dt" else (TASK,):
            place = folder / "adaptations" / f"{name}-{SUFFIX}" / f"task-{task}"
            backbone = backbones[method.backbone]
            AdaptationCell(name, task, place, small_dataset, backbone, SETTINGS, diffuser_folder).run(CPU)
    return folder


def play(policy: Policy, seed: int = SEED, **asked: Any) -> tuple[np.ndarray, float, int]:
    """Play an episode in the family's Gymnasium environment; return its actions, return and length."""
    env = gymnasium.make(f"promptdiffuser.tasks:{policy.family.gymnasium_id}", task=policy.task)
    observation, _ = env.reset(seed=seed)
    policy.reset(**asked)
    actions, rewards, ended = [], [], False
    while not ended:
        actions.append(policy.act(observation))
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        policy.observe(float(reward))
        rewards.append(np.float32(reward))
        ended = terminated or truncated
    env.close()
    return np.array(actions), float(np.sum(rewards, dtype=np.float64)), len(rewards)


def check_equals_evaluation(policy: Policy, folder: Path, backbone_folder: Path, prompt: int, target: float) -> None:
    """Check that a policy acts and earns as the platform's own evaluation of the same folder."""
    family = policy.family
    backbone, normaliser = load_backbone(backbone_folder, family, CPU)
    adapted = load_adaptation(folder, backbone, get_method(read_origin(folder).method)).policy
    policies = AdaptedPolicies(normaliser, {policy.method: {policy.task: adapted}})
    request = EvaluationRequest(policy.task, SEED, policy.method, prompt, 0, target)
    stepper = EpisodeStepper(family)
    rollouts = stepper.roll_out([request], PromptedPolicy(family, policies, adapted.backbone))
    (row,) = EvaluationBlock(0, (request,), ProtocolConfig()).run(stepper, policies).to_dict("records")
    actions, total, length = play(policy, prompt=prompt, target_return=target)
    assert length == row["length"]
    assert np.array_equal(actions, rollouts.episodes.actions[0, :length])
    assert total == row["return"]


@pytest.mark.parametrize("method", ADAPTED)
def test_a_policy_acts_as_in_the_evaluation(experiment: Path, method: str) -> None:
    policy = promptdiffuser.load_policy(experiment, method, TASK)
    assert (policy.family.name, policy.task, policy.method) == (FAMILY.name, TASK, method)
    assert policy.target_return == SETTINGS.target_return
    folder = experiment / "adaptations" / f"{method}-{SUFFIX}" / f"task-{TASK}" / "policy"
    backbone = experiment / f"{METHODS[method].backbone}-{SUFFIX}" / "model"
    for prompt, target in ((0, policy.target_return), (4, -100.0)):
        check_equals_evaluation(policy, folder, backbone, prompt, target)


def other_family(family: TaskFamily, folder: Path) -> Path:
    """Write a policy of another family with adapters in its backbone, and return its folder."""
    pool, normaliser = tiny_pool(family, family.test_tasks[:1] * 3)
    weights, document = tiny_backbone(family).state_dict(), {"family": family.name, "config": asdict(TINY)}
    backbone_folder = save_backbone(folder / "model", weights, document, normaliser)
    changed = tiny_backbone(family)
    add_adapters(changed, 4, torch.Generator().manual_seed(0))
    origin = Origin.of(folder / "policy", family.name, family.test_tasks[0], "adapters", 50.0, backbone_folder)
    adaptation = Adaptation(AdaptedPolicy(changed, pool.prompts))
    save_adaptation(folder / "policy", adaptation, tiny_backbone(family), origin)
    return folder / "policy"


@pytest.mark.parametrize("name", ["hopper-params", "reach"])
def test_policies_of_other_families_act_as_in_the_evaluation(name: str, tmp_path: Path) -> None:
    """hopper-params ends episodes early, reach is of Meta-World."""
    folder = other_family(get_family(name), tmp_path)
    policy = promptdiffuser.load_policy(folder)
    check_equals_evaluation(policy, folder, tmp_path / "model", prompt=1, target=50.0)
    _, _, length = play(policy, prompt=1)
    assert (length < policy.family.horizon) == policy.family.terminates


def test_without_arguments_the_first_prompt_and_the_target_of_the_evaluation_are_used(experiment: Path) -> None:
    policy = promptdiffuser.load_policy(experiment, "prompt-dt", TASK)
    found, _, _ = play(policy)
    asked, _, _ = play(policy, prompt=0, target_return=SETTINGS.target_return)
    assert np.array_equal(found, asked)
    assert not np.array_equal(found, play(policy, prompt=1)[0])
    assert not np.array_equal(found, play(policy, target_return=-300.0)[0])


def test_every_folder_down_to_the_policy_names_it(experiment: Path) -> None:
    method = experiment / "adaptations" / f"prompt-dt-{SUFFIX}"
    task = method / f"task-{TASK}"
    forms: list[Callable[[], Policy]] = [
        lambda: promptdiffuser.load_policy(str(experiment), method="prompt-dt", task=TASK),
        lambda: promptdiffuser.load_policy(method, task=TASK),
        lambda: promptdiffuser.load_policy(task),
        lambda: promptdiffuser.load_policy(task / "policy", "prompt-dt", TASK),
    ]
    for load in forms:
        policy = load()
        assert (policy.method, policy.task) == ("prompt-dt", TASK)
        assert isinstance(policy.prompts, Segments)


def test_an_experiment_that_was_moved_as_a_whole_is_found(experiment: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(experiment, tmp_path / "elsewhere" / "mine")
    before, after = (promptdiffuser.load_policy(place, "lora", TASK) for place in (experiment, moved))
    assert np.array_equal(play(before)[0], play(after)[0])


@pytest.fixture
def copied(experiment: Path, tmp_path: Path) -> Path:
    """Return a copy of the experiment that a test may damage."""
    return shutil.copytree(experiment, tmp_path / "quickstart")


def test_missing_and_ambiguous_policies_are_refused_with_the_remedy(copied: Path, tmp_path: Path) -> None:
    load, adaptations = promptdiffuser.load_policy, copied / "adaptations"
    policy = adaptations / f"prompt-dt-{SUFFIX}" / f"task-{TASK}" / "policy"
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: load(tmp_path / "no"), r"no folder .*no, and it is no MLflow run id"),
        (lambda: load(copied), r"several methods, name one; known: adapters, lora, mt-bc, prompt-diffuser-multi"),
        (lambda: load(copied, "ppo", TASK), r"no method 'ppo'; known: adapters"),
        (lambda: load(copied, "prompt-dt"), rf"tasks {TASK}, {OTHER_TASK}; name a task"),
        (lambda: load(copied, "lora", OTHER_TASK), rf"tasks {TASK}; there is none of task {OTHER_TASK}"),
        (lambda: load(policy, task=OTHER_TASK), rf"a policy of task {TASK}, not {OTHER_TASK}"),
        (lambda: load(policy, method="lora"), r"a policy of method prompt-dt, not lora"),
        (lambda: load(tmp_path), r"is not a checkpoint"),
        (lambda: load(copied / f"prompt-dt-{SUFFIX}" / "model"), r"holds no adapted policy"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    shutil.copytree(adaptations / f"lora-{SUFFIX}", adaptations / "lora-ffffffff")
    with pytest.raises(UserError, match=rf"several methods 'lora'.*lora-{SUFFIX}, lora-ffffffff"):
        load(copied, "lora", TASK)


def test_a_policy_of_an_earlier_version_and_a_lost_or_other_backbone_are_refused(copied: Path) -> None:
    def load() -> Policy:
        return promptdiffuser.load_policy(copied, "prompt-dt", TASK)

    backbone = copied / f"prompt-dt-{SUFFIX}" / "model"
    other = load_checkpoint(backbone)
    save_checkpoint(backbone, other.tensors, {"model": other.documents["model"] | {"steps": 7}})
    with pytest.raises(UserError, match=r"another one is there now"):
        load()
    shutil.rmtree(backbone)
    with pytest.raises(UserError, match=rf"backbone in {backbone}, which is not there; move"):
        load()
    policy = copied / "adaptations" / f"prompt-dt-{SUFFIX}" / f"task-{TASK}" / "policy"
    read = load_checkpoint(policy)
    save_checkpoint(policy, read.tensors, {"cost": read.documents["cost"]})
    with pytest.raises(UserError, match=r"does not say which backbone.*--rerun adapt"):
        load()


def test_calls_in_another_order_are_refused(experiment: Path) -> None:
    policy = promptdiffuser.load_policy(experiment, "prompt-dt", TASK)
    observation = np.zeros(FAMILY.observation_dim)
    with pytest.raises(UserError, match=r"call reset\(\) first"):
        policy.act(observation)
    with pytest.raises(UserError, match=rf"no prompt {NUM_PROMPTS}; the policy has prompts 0 to {NUM_PROMPTS - 1}"):
        policy.reset(prompt=NUM_PROMPTS)
    policy.reset()
    with pytest.raises(UserError, match=r"act\(\) before observe"):
        policy.observe(0.0)
    with pytest.raises(UserError, match=r"shape \(3,\), cheetah-vel needs \(20,\)"):
        policy.act(np.zeros(3))
    with pytest.raises(UserError, match=r"not finite at step 0"):
        policy.act(observation * np.nan)
    policy.reset()
    for _ in range(FAMILY.horizon):
        assert np.abs(policy.act(observation)).max() <= 1
        with pytest.raises(UserError, match=r"observe\(reward\) after each step"):
            policy.act(observation)
        policy.observe(0.0)
    with pytest.raises(UserError, match=r"has 200 steps"):
        policy.act(observation)


def prompts_of(experiment: Path, method: str, small_dataset: Dataset, seed: int) -> Segments:
    """Return the prompts that a method generates on the task without training on it."""
    backbone, normaliser = load_backbone(experiment / f"prompt-dt-{SUFFIX}" / "model", FAMILY, CPU)
    builder = InputsBuilder(small_dataset, backbone, normaliser, dataclasses.replace(SETTINGS, seed=seed))
    diffuser = experiment / f"diffuser-{METHODS[method].diffuser}-{SUFFIX}" / "model"
    prompts = METHODS[method].adapt(builder.inputs(METHODS[method], TASK, experiment, diffuser)).policy.prompts
    assert isinstance(prompts, Segments)
    return prompts


def check_equal(first: Segments, second: Segments) -> None:
    for field in dataclasses.fields(Segments):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name


@pytest.mark.parametrize("method", ["prompt-diffuser", "prompt-diffuser-multi-task"])
def test_prompts_are_those_that_the_method_generates(experiment: Path, small_dataset: Dataset, method: str) -> None:
    """`prompt-diffuser` sees y only, `prompt-diffuser-multi-task` a task context as well."""
    generator = promptdiffuser.load_diffuser(experiment, METHODS[method].diffuser)
    few_shot = small_dataset.few_shot([TASK], SETTINGS.few_shot)
    for seed in (0, 3):
        found = generator.generate(few_shot, NUM_PROMPTS, seed)
        check_equal(found, prompts_of(experiment, method, small_dataset, seed))
    # The noise of a prompt does not depend on their number; batched sums round differently.
    torch.testing.assert_close(generator.generate(few_shot, 2, seed=3).states, found.states[:2])


def test_a_policy_acts_behind_generated_prompts(experiment: Path, small_dataset: Dataset) -> None:
    few_shot = small_dataset.few_shot([TASK], SETTINGS.few_shot)
    prompts = promptdiffuser.load_diffuser(experiment, "context").generate(few_shot, NUM_PROMPTS, SETTINGS.seed)
    policy = promptdiffuser.load_policy(experiment, "prompt-dt", TASK).with_prompts(prompts)
    own = promptdiffuser.load_policy(experiment, "prompt-diffuser-multi-task", TASK)
    assert not isinstance(own.prompts, Tensor)
    assert np.array_equal(play(policy, prompt=3)[0], play(own, prompt=3)[0])


@pytest.mark.parametrize("made", [dict, SimpleNamespace])
@pytest.mark.parametrize("extra", [0, 1])
def test_episodes_may_be_arrays_or_those_of_minari(
    experiment: Path, small_dataset: Dataset, made: Callable[..., Any], extra: int
) -> None:
    """With and without the observation after the last action. A diffuser without context does not draw transitions."""
    few_shot = small_dataset.few_shot([TASK], SETTINGS.few_shot)
    arrays = [
        made(observations=np.pad(observations, ((0, extra), (0, 0))), actions=actions, rewards=rewards)
        for observations, actions, rewards in zip(
            few_shot.observations, few_shot.actions, few_shot.rewards, strict=True
        )
    ]
    generator = promptdiffuser.load_diffuser(experiment, "published")
    check_equal(generator.generate(arrays, 4, task=TASK), generator.generate(few_shot, 4))
    assert torch.equal(generator.generate(arrays, 4).timesteps, generator.generate(few_shot, 4).timesteps)


def test_diffusers_and_episodes_that_do_not_serve_are_refused(copied: Path, small_dataset: Dataset) -> None:
    load = promptdiffuser.load_diffuser
    with pytest.raises(UserError, match=r"several diffusers, name one; known: context, published"):
        load(copied)
    with pytest.raises(UserError, match=r"no diffuser 'z'; known: context, published"):
        load(copied, "z")
    with pytest.raises(UserError, match=r"no diffuser but 'backbone'"):
        load(copied / f"prompt-dt-{SUFFIX}")
    folder = copied / f"diffuser-context-{SUFFIX}"
    generator = load(folder)
    assert load(folder / "model").family.name == FAMILY.name
    with pytest.raises(UserError, match=r"of one task, got those of tasks"):
        generator.generate(small_dataset.few_shot(TARGETS, SETTINGS.few_shot))
    with pytest.raises(UserError, match=r"episode 0: it has no actions and no rewards"):
        generator.generate([{"observations": np.zeros((3, 20))}])
    with pytest.raises(UserError, match=r"few_shot, episode 0: observations have shape \(9, 3\)"):
        generator.generate([{"observations": np.zeros((9, 3)), "actions": np.zeros((9, 6)), "rewards": np.zeros(9)}])
    read = load_checkpoint(folder / "model")
    del read.documents["model"]["context_transitions"]
    save_checkpoint(folder / "model", read.tensors, read.documents)
    with pytest.raises(UserError, match=r"how episodes are prepared.*earlier version.*--rerun diffuser-NAME"):
        load(folder)


def test_a_diffuser_that_sees_the_goal_asks_for_the_task(copied: Path, small_dataset: Dataset) -> None:
    folder, read = copied / "goal", load_checkpoint(copied / f"diffuser-published-{SUFFIX}" / "model")
    sizes, config = read.documents["model"]["space"], dataclasses.replace(DENOISER, context="goal")
    space = PromptSpace(**{**read.tensors["space"], **sizes})
    made = build_diffuser(config, DiffusionConfig(), space, FAMILY, True, "test")
    document = diffuser_document(FAMILY, config, DiffusionConfig(), True, CONTEXT_TRANSITIONS)
    normaliser = Normaliser(**read.tensors["normaliser"])
    save_diffuser(folder / "model", dict(made.denoiser.state_dict()), document, space, normaliser)
    few_shot = small_dataset.few_shot([TASK], SETTINGS.few_shot).select(slice(1))
    arrays = [
        {"observations": few_shot.observations[0], "actions": few_shot.actions[0], "rewards": few_shot.rewards[0]}
    ]
    generator = promptdiffuser.load_diffuser(folder)
    with pytest.raises(UserError, match=r"sees the goal.*task=N"):
        generator.generate(arrays)
    check_equal(generator.generate(arrays, task=TASK), generator.generate(few_shot))


@pytest.fixture
def runs(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Log an experiment with a method and a diffuser, as the pipeline does, and return the ids of its runs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path}/mlflow.db")
    tracker = prepare(uri, "quickstart")
    parent = tracker.run("quickstart", "e", None, {STAGE_TAG: "experiment"})
    evaluate = tracker.run("evaluate", "v", parent, {STAGE_TAG: "evaluate"})
    made = {"experiment": parent}
    places = {"prompt-dt": {FOLDER_TAG: str(experiment / "adaptations" / f"prompt-dt-{SUFFIX}")}, "lora": {}}
    for name, place in places.items():
        made[name] = tracker.run(name, name, evaluate, {STAGE_TAG: "method", METHOD_TAG: name, **place})
    for name in ("context", "gone"):
        tags = {STAGE_TAG: "train-diffuser", FOLDER_TAG: str(experiment / f"diffuser-{name}-{SUFFIX}")}
        made[name] = tracker.run(f"diffuser-{name}", name, parent, tags)
    return {name: run.run_id for name, run in made.items()}


def test_a_run_id_names_a_method_and_a_diffuser(runs: dict[str, str], experiment: Path) -> None:
    policy = promptdiffuser.load_policy(runs["prompt-dt"], task=OTHER_TASK)
    assert (policy.method, policy.task) == ("prompt-dt", OTHER_TASK)
    assert promptdiffuser.load_diffuser(runs["context"]).family.name == FAMILY.name


def test_runs_that_do_not_serve_are_refused_with_the_remedy(runs: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"no run f{32} in sqlite.*MLFLOW_TRACKING_URI"):
        promptdiffuser.load_policy("f" * 32, task=TASK)
    with pytest.raises(UserError, match=r"\(quickstart\) belongs to stage 'experiment'; pass one of 'method'"):
        promptdiffuser.load_policy(runs["experiment"], task=TASK)
    with pytest.raises(UserError, match=r"does not say where its models are; pass their folder"):
        promptdiffuser.load_policy(runs["lora"], task=TASK)
    with pytest.raises(UserError, match=r"belongs to stage 'method'; pass one of 'train-diffuser'"):
        promptdiffuser.load_diffuser(runs["prompt-dt"])
    with pytest.raises(UserError, match=r"which is not there; pass the folder where they are now"):
        promptdiffuser.load_diffuser(runs["gone"])


@pytest.mark.ray
def test_what_a_pipeline_leaves_is_found_by_folder_and_by_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tiny_run}/mlflow.db")
    client = MlflowClient(uri)
    found = {str(run.info.run_name): run.info.run_id for run in client.search_runs(["1"])}
    episodes = pd.read_parquet(next(tiny_run.glob("quickstart/evaluate-*")) / "episodes.parquet")
    for name, task in (("prompt-dt", TASK), ("prompt-diffuser-context", 7)):
        by_folder = promptdiffuser.load_policy(tiny_run / "quickstart", name, task)
        by_run = promptdiffuser.load_policy(found[name], task=task)
        played = episodes[(episodes["method"] == name) & (episodes["task"] == task)].iloc[-1]
        actions, total, _ = play(by_folder, int(played["seed"]), prompt=int(played["prompt"]))
        assert np.array_equal(actions, play(by_run, int(played["seed"]), prompt=int(played["prompt"]))[0])
        # The evaluation stepped many episodes at a time, whose sums round differently.
        assert total == pytest.approx(played["return"], rel=1e-2)
    few_shot_model = next(tiny_run.glob("quickstart/adaptations/prompt-diffuser-context-*/task-7"))
    for source in (found["diffuser-context"], next(tiny_run.glob("quickstart/diffuser-context-*")), few_shot_model):
        assert promptdiffuser.load_diffuser(source).family.name == FAMILY.name


def test_importing_the_package_is_light_and_using_it_needs_neither_ray_nor_mlflow(experiment: Path) -> None:
    code = f"""
import sys, promptdiffuser
assert not {{"torch", "mlflow", "ray", "numpy"}} & set(sys.modules)
policy = promptdiffuser.load_policy({str(experiment)!r}, "prompt-dt", {TASK})
promptdiffuser.load_diffuser({str(experiment)!r}, "context")
policy.reset()
policy.act([0.0] * 20)
assert not {{"mlflow", "ray"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_polcy'"):
        _ = promptdiffuser.load_polcy


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_the_code_of_the_page_runs_and_is_short(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    (tmp_path / "outputs").symlink_to(experiment.parent, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert len([line for line in block.splitlines() if line]) <= 10
    exec(compile(block, str(PAGE), "exec"), {})
