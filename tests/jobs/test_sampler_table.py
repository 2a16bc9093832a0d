"""The table of samplers: what it measures, and what its differences and intervals are."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from promptdiffuser.data.plans import Rounds, held_out_plan
from promptdiffuser.data.store import Dataset
from promptdiffuser.diffusion.process import Diffusion, DiffusionConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.pipeline import sampler_table
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.few_shot import DRAWS, held_out_loss, loss_behind
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.trainings import DiffuserTraining, make_resident
from tests.training.small_backbone import CPU, FAMILY, small_training

TASK = 4


@pytest.fixture
def learning(small_dataset: Dataset, tmp_path: Path) -> DiffuserLearning:
    """Return an untrained diffuser of six levels on two few-shot episodes and a held-out one."""
    backbone = small_training(small_dataset.read([0, 1]))
    task = backbone.learning_task(*make_resident(backbone, small_dataset.read([0, 1]), CPU), CPU)
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.4 * torch.randn(w.shape, generator=generator) for name, w in task.model.state_dict().items()}
    backbone.save(tmp_path / "backbone", task, weights)
    training = DiffuserTraining(
        family=FAMILY.name,
        seed=0,
        stage="table",
        backbone_folder=tmp_path / "backbone",
        denoiser=DenoiserConfig(hidden=16, depth=1),
        diffusion=DiffusionConfig(steps=6),
        guidance=GuidanceConfig(batch_size=4, precision="fp32"),
        with_context=True,
        batch_size=4,
        guidance_start=0,
        context_episodes=2,
        context_transitions=3,
        optimisation=OptimisationConfig(steps=1),
        prompt_length=backbone.prompt_length,
        window_steps=6,
        dataset_digest="synthetic",
        rounds=Rounds(),
        held_out_episodes=1,
    )
    return training.learning_task(*make_resident(training, small_dataset.read([TASK]), CPU), CPU)


def test_samplers_differ_in_how_the_same_diffuser_is_run(learning: DiffuserLearning) -> None:
    trained, pool = learning.diffuser.diffusion, learning.pool
    plan = held_out_plan(learning.downstream_planner, pool.index, DRAWS)
    expected = {"ddpm:6": held_out_loss(learning, dict(learning.model.state_dict()))}
    config = DiffusionConfig(steps=6, sampler="ddim", sampling_steps=2)
    learning.diffuser.diffusion = Diffusion(config, trained.low_X, trained.high_X)
    noise_KWX = learning.diffuser.draw_batch_noise(len(plan.episodes), *learning.address, "held-out")
    assert len(noise_KWX) == 2
    conditions, contexts = pool.prompts_at(plan.prompt_episodes), pool.contexts_at(plan.context_episodes)
    expected["ddim:2"] = loss_behind(learning, plan, learning.diffuser.generate(conditions, contexts, noise_KWX))
    expected["few-shot prompts"] = loss_behind(learning, plan, conditions)
    learning.diffuser.diffusion = trained

    one = pool.select(np.array([0]))
    others = replace(one, prompts=replace(one.prompts, states=-one.prompts.states))
    found = sampler_table.losses_of(learning, ("ddpm:6", "ddim:2"), others)
    assert found.pop("other tasks' prompts") == pytest.approx(
        loss_behind(learning, plan, others.prompts.select(torch.zeros(len(plan.episodes), dtype=torch.int64)))
    )
    assert found == pytest.approx(expected)
    assert len(set(found.values())) == 3
    assert sampler_table.losses_of(learning, ("ddpm:6", "ddim:2"), others)["ddpm:6"] == found["ddpm:6"]


def test_differences_are_paired_and_their_intervals_those_of_trainings() -> None:
    shifts = {"ddpm:50": 0, "ddim:5": 0.01, sampler_table.FEW_SHOT: -0.05, sampler_table.OTHER_TASKS: 1.0}
    rows = [
        (name, training, task, seed, 0.1 * task + 0.01 * seed + (0 if name == "ddpm:50" else shift + 0.002 * training))
        for name, shift in shifts.items()
        for training in range(3)
        for task in (1, 2)
        for seed in range(4)
    ]
    frame = pd.DataFrame(rows, columns=["sampler", "training_seed", "task", "generation_seed", "loss_dt"])
    console = Console(width=200, file=StringIO())
    console.print(sampler_table.compared(frame, ("ddpm:50", "ddim:5")))
    lines = {line.split("│")[1].strip(): line for line in console.file.getvalue().splitlines() if "│" in line}
    # 0.010, 0.012 and 0.014 by training: Student's half width is 4.3027 x 0.002 / sqrt(3).
    assert "0.17700 │      +0.01200 │ +0.00703 to +0.01697" in lines["ddim:5"]
    assert "0.16500" in lines["ddpm:50"]
    assert lines.keys() == {"ddpm:50", "ddim:5", sampler_table.FEW_SHOT, sampler_table.OTHER_TASKS}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"samplers": ("ddpm:50", "ddim")}, "samplers has 'ddim'; write NAME:LEVELS"),
        ({"samplers": ("ddpm:50", "ddim:0")}, "samplers has 'ddim:0'"),
        ({"samplers": ("ddpm:50", "ddim:51")}, r"sampling_steps must be between 0 and diffusion\.steps \(50\), got 51"),
        ({"samplers": ("ddpm:50", "euler:5")}, "sampler 'euler' is unknown"),
        ({"samplers": ("ddpm:50", "ddpm:50")}, "samplers must name at least two"),
        ({"diffuser": "prompt-dt"}, "diffuser 'prompt-dt' is unknown; known: published, context"),
        ({"generation_seeds": 0}, "generation_seeds must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], named: str) -> None:
    options = sampler_table.quickstart_of_fifty_levels().job
    with pytest.raises(ValueError, match=named):
        sampler_table.SamplerTable(options, **changes)
