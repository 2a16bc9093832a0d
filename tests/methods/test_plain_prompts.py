"""Methods that generate prompts without a diffuser, and those that take them as they are."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import AdaptationInputs
from promptdiffuser.methods.gaussian_prompt import Gaussian, best_shrinkage
from promptdiffuser.methods.inputs import InputsBuilder
from promptdiffuser.methods.nearest_prompt import NearestPromptConfig, energy_distance, nearest_task
from promptdiffuser.methods.vae_prompt import VaePromptConfig, trained_vae
from promptdiffuser.rng import torch_generator
from tests.methods.conftest import FAMILY, FEW_SHOT, NUM_PROMPTS, SETTINGS, TASK
from tests.rollout.synthetic_policies import TINY, tiny_backbone

MakeInputs = Callable[..., AdaptationInputs]


def trajectories(name: str, inputs: AdaptationInputs) -> Segments:
    prompts = METHODS[name].adapt(inputs).policy.prompts
    assert isinstance(prompts, Segments)
    return prompts


@pytest.mark.parametrize("quality", ["medium", "random"])
def test_prompts_of_another_quality_are_those_of_its_first_episodes(
    quality: str, make_inputs: MakeInputs, small_dataset: Dataset, normaliser: Normaliser
) -> None:
    method = METHODS[f"prompt-dt-{quality}"]
    assert method.qualities == (quality,)
    prompts = trajectories(method.name, make_inputs(method))
    episodes = small_dataset.read([TASK], quality)
    last_but_one = slice(FAMILY.horizon - TINY.prompt_length - 1, FAMILY.horizon - 1)
    for row in range(NUM_PROMPTS):
        torch.testing.assert_close(
            prompts.states[row],
            normaliser.states(torch.from_numpy(episodes.observations[row % FEW_SHOT, last_but_one])),
        )


@pytest.mark.parametrize(
    ("name", "sees_prompt", "sees_returns"),
    [("mt-orl", False, True), ("mt-bc", False, False), ("prompt-mt-bc", True, False)],
)
def test_baselines_act_without_what_they_do_not_see(
    name: str, sees_prompt: bool, sees_returns: bool, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(METHODS[name])
    policy = METHODS[name].adapt(inputs).policy
    assert isinstance(policy.prompts, Segments)
    history = inputs.few_shot.windows.segments(np.zeros(NUM_PROMPTS, np.int64), np.zeros(NUM_PROMPTS, np.int64), 6)
    others = dataclasses.replace(policy.prompts, states=policy.prompts.states + 1.0)
    richer = dataclasses.replace(history, returns_to_go=history.returns_to_go + 1.0)
    actions = policy.backbone(history, policy.prompts)
    assert torch.equal(policy.backbone(history, others), actions) == (not sees_prompt)
    assert torch.equal(policy.backbone(richer, policy.prompts), actions) == (not sees_returns)


def test_energy_distance_is_that_of_its_definition() -> None:
    left, right = (torch.randn(n, 3, generator=torch_generator("energy", n)).double() for n in (4, 7))

    def mean_distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(np.mean([np.linalg.norm(x - y) for x in a.numpy() for y in b.numpy()]))

    expected = 2 * mean_distance(left, right) - mean_distance(left, left) - mean_distance(right, right)
    assert float(energy_distance(left, right)) == pytest.approx(expected)
    assert float(energy_distance(left, left.flip(0))) == pytest.approx(0, abs=1e-12)


def test_nearest_task_is_the_one_that_the_few_shot_episodes_are_of(
    small_dataset: Dataset, normaliser: Normaliser
) -> None:
    """On training tasks, whose nearest task is known, from a few transitions of episodes that it is not compared by."""
    builder = InputsBuilder(small_dataset, tiny_backbone(FAMILY), normaliser, SETTINGS)
    training, tasks = builder.training.pool, FAMILY.train_tasks[::6]
    found = [nearest_task(builder.few_shot([task], FewShotConfig(FEW_SHOT)).pool, training, FEW_SHOT) for task in tasks]
    assert found == list(tasks)


def test_nearest_prompts_are_of_a_task_with_nearly_the_goal(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(METHODS["nearest-prompt"])
    prompts, training = trajectories("nearest-prompt", inputs), inputs.training().pool
    task = nearest_task(inputs.few_shot.pool, training, episodes := NearestPromptConfig().episodes)
    velocities = {other: FAMILY.goal(other)[0] for other in FAMILY.tasks}
    assert abs(velocities[task] - velocities[TASK]) < 0.5 < max(velocities.values()) / 5
    first, count = training.index.pool_of(np.array([task]))
    assert count <= episodes
    turn = first + np.arange(NUM_PROMPTS) % count
    assert torch.equal(prompts.states, training.prompts_at(turn).states)


def test_mean_prompt_is_the_mean_of_the_few_shot_prompts(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(METHODS["mean-prompt"])
    mean, prompts = trajectories("mean-prompt", inputs), inputs.few_shot.pool.prompts
    for name in ("states", "actions", "rewards", "returns_to_go"):
        expected = getattr(prompts, name).numpy().astype(np.float64).mean(axis=0)
        for one in getattr(mean, name):
            np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)


def test_timesteps_of_the_mean_prompt_follow_each_other(make_inputs: MakeInputs) -> None:
    """Also where the few-shot episodes end at different times, as they do where a robot may fall."""
    inputs = make_inputs(METHODS["mean-prompt"])
    pool = inputs.few_shot.pool
    early = dataclasses.replace(
        pool.prompts, timesteps=pool.prompts.timesteps - torch.tensor([0, 3, 8])[: len(pool.prompts), None]
    )
    few_shot = dataclasses.replace(inputs.few_shot, pool=dataclasses.replace(pool, prompts=early))
    steps = trajectories("mean-prompt", dataclasses.replace(inputs, read_few_shot=lambda: few_shot)).timesteps
    assert steps[0].tolist() == [190, 191, 192, 193, 194]  # 194 - 11 / 3, rounded down


def test_gaussian_has_the_moments_of_the_shrunk_sample() -> None:
    x_NX = torch.randn(5, 6, generator=torch_generator("gaussian")) @ torch.randn(
        6, 6, generator=torch_generator("mix")
    )
    gaussian = Gaussian.fit(x_NX)
    assert 0 < gaussian.shrinkage < 1
    sample = np.cov(x_NX.numpy().T)
    expected = (1 - gaussian.shrinkage) * sample + gaussian.shrinkage * np.diag(np.diag(sample))
    drawn = gaussian.draw(*(torch.randn(200_000, n, generator=torch_generator("draw", n)) for n in (5, 6))).numpy()
    spread = np.sqrt(np.diag(sample))
    assert (np.abs(drawn.mean(0) - x_NX.numpy().mean(0)) / spread < 0.01).all()
    assert (np.abs(np.cov(drawn.T) - expected) / np.outer(spread, spread) < 0.01).all()


def test_shrinkage_is_that_of_its_definition() -> None:
    """Schäfer & Strimmer 2005, section 2.3 and table 2, target D, written out element by element."""
    x = torch.randn(5, 4, generator=torch_generator("shrinkage"), dtype=torch.float64).numpy()
    n = len(x)
    standard = (x - x.mean(0)) / x.std(0, ddof=1)
    variance = squares = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                products = standard[:, i] * standard[:, j]
                variance += n / (n - 1) ** 3 * ((products - products.mean()) ** 2).sum()
                squares += (n / (n - 1) * products.mean()) ** 2
    assert best_shrinkage(torch.from_numpy((x - x.mean(0)) / np.sqrt(n - 1))) == pytest.approx(
        min(1.0, variance / squares)
    )


def test_shrinkage_grows_as_features_have_less_to_do_with_each_other() -> None:
    noise = torch.randn(40, 30, generator=torch_generator("features"))
    common = torch.randn(40, 1, generator=torch_generator("common"))
    alone, together = Gaussian.fit(noise).shrinkage, Gaussian.fit(common + 0.1 * noise).shrinkage
    assert together < 0.1
    assert alone > 0.8


def test_gaussian_of_one_prompt_is_that_prompt(make_inputs: MakeInputs) -> None:
    only = torch.randn(1, 6, generator=torch_generator("one"))
    assert torch.equal(Gaussian.fit(only).draw(torch.ones(3, 1), torch.ones(3, 6)), only.repeat(3, 1))


@pytest.mark.parametrize("name", ["gaussian-prompt", "vae-prompt"])
def test_generated_prompts_differ_lie_within_the_bounds_and_keep_the_condition(
    name: str, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(METHODS[name], num_prompts=60)
    prompts, of_task = trajectories(name, inputs), inputs.few_shot.pool.prompts
    space = PromptSpace.fit(inputs.normaliser, of_task, FAMILY.horizon)
    x_BX = space.encode(prompts)
    assert (x_BX >= space.low).all()
    assert (x_BX <= space.high).all()
    assert len(x_BX.unique(dim=0)) == 60
    turn = torch.arange(60) % FEW_SHOT
    assert torch.equal(prompts.returns_to_go, of_task.returns_to_go[turn])
    assert torch.equal(prompts.timesteps, of_task.timesteps[turn])


def test_elbo_of_unseen_tasks_rises_with_training(
    make_inputs: MakeInputs, small_dataset: Dataset, normaliser: Normaliser
) -> None:
    builder = InputsBuilder(small_dataset, tiny_backbone(FAMILY), normaliser, SETTINGS)
    unseen = builder.few_shot(FAMILY.validation_tasks, FewShotConfig(FEW_SHOT)).pool
    own = np.arange(len(unseen.prompts))[:, None]

    def negative_elbo(updates: int) -> float:
        config = VaePromptConfig(updates=updates, batch_size=64, hidden=32, latent=4, learning_rate=1e-2)
        inputs = dataclasses.replace(make_inputs(METHODS["vae-prompt"]), settings=config)
        vae = trained_vae(inputs, inputs.training().pool, num_context=1)
        noise = torch.randn(len(own), config.latent, generator=torch_generator("elbo"))
        return vae.negative_elbo(unseen.prompts, unseen.contexts_at(own), noise).mean().item()

    assert negative_elbo(60) < negative_elbo(1) - 20


def test_vae_is_the_same_for_every_task_of_a_seed(make_inputs: MakeInputs) -> None:
    method = METHODS["vae-prompt"]
    weights = []
    for task, seed in ((7, 0), (15, 0), (7, 1)):
        inputs = make_inputs(method, task=task, seed=seed)
        weights.append(trained_vae(inputs, inputs.training().pool, FEW_SHOT).state_dict())
    first, other_task, other_seed = weights
    assert all(torch.equal(first[name], other_task[name]) for name in first)
    assert not torch.equal(first["decoder.0.weight"], other_seed["decoder.0.weight"])


def test_vae_sees_the_few_shot_transitions(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(METHODS["vae-prompt"])
    pool = inputs.few_shot.pool
    moved = dataclasses.replace(pool, transitions=pool.transitions + 1.0)
    few_shot = dataclasses.replace(inputs.few_shot, pool=moved)
    other = dataclasses.replace(inputs, read_few_shot=lambda: few_shot)
    assert not torch.equal(trajectories("vae-prompt", inputs).states, trajectories("vae-prompt", other).states)


def test_training_of_the_vae_is_reported(make_inputs: MakeInputs) -> None:
    histories: list[list[dict[str, float]]] = []
    inputs = dataclasses.replace(make_inputs(METHODS["vae-prompt"]), on_history=histories.append)
    METHODS["vae-prompt"].adapt(inputs)
    (history,) = histories
    assert history[-1]["step"] == inputs.settings.updates
    assert np.isfinite(history[-1]["train/negative_elbo"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: VaePromptConfig(latent=0), r"adaptation\.vae_prompt\.latent must be at least 1, got 0"),
        (lambda: VaePromptConfig(learning_rate=0.0), r"adaptation\.vae_prompt\.learning_rate must be above 0"),
        (lambda: NearestPromptConfig(episodes=0), r"adaptation\.nearest_prompt\.episodes must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings()
