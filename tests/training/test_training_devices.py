"""Trainings, decoders, projections, schedules, predictions and samplers compute on the device that they are given."""

import dataclasses
from itertools import product
from typing import Any

import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.predictions import PREDICTIONS
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.samplers import SAMPLERS
from promptdiffuser.diffusion.schedules import SCHEDULES
from promptdiffuser.models.decoding import make_decoder
from promptdiffuser.models.denoiser import ARCHITECTURES
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import Engine, identity_reduce
from promptdiffuser.training.projection import PROJECTIONS
from promptdiffuser.training.trainings import BackboneTraining, DiffuserTraining, make_resident
from tests.models.segments import ACTION_DIM, STATE_DIM, segments
from tests.models.test_decoding import HORIZON, ROWS, network
from tests.on_meta import META, on_meta

EXAMINED = True
LEVELS = 12


def advance(training: BackboneTraining | DiffuserTraining, episodes: Episodes) -> Any:
    """Make two updates, one of them looked at, and return the task."""
    with on_meta():
        task = training.learning_task(*make_resident(training, episodes, META), META)
        engine = Engine(task, training.optimisation, identity_reduce)
        engine.advance()
        engine.advance(EXAMINED)
        assert {tensor.device for tensor in engine.trained_tensors().values()} == {META}
    return task


@pytest.mark.parametrize("attention", ["full", "banded"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_pretraining(backbone_training: BackboneTraining, episodes: Episodes, attention: str, dropout: float) -> None:
    backbone = dataclasses.replace(backbone_training.backbone, attention=attention, dropout=dropout)
    advance(dataclasses.replace(backbone_training, backbone=backbone), episodes)


@pytest.mark.parametrize("path", ["chain", "one-step"])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("project", ["gradient", "update"])
def test_guided_training(
    diffuser_training: DiffuserTraining, episodes: Episodes, path: str, projection: str, project: str
) -> None:
    guidance = dataclasses.replace(diffuser_training.guidance, path=path, projection=projection, project=project)
    advance(dataclasses.replace(diffuser_training, guidance=guidance), episodes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("context", ["transitions", "goal"])
def test_denoisers(diffuser_training: DiffuserTraining, episodes: Episodes, architecture: str, context: str) -> None:
    changes = {"architecture": architecture, "context": context, "condition_dropout": 0.2}
    denoiser = dataclasses.replace(diffuser_training.denoiser, **changes)
    advance(dataclasses.replace(diffuser_training, denoiser=denoiser), episodes)


def fit_together(schedule: str, sampler: str) -> bool:
    try:
        DiffusionConfig(schedule, LEVELS, sampler=sampler)
    except ValueError:
        return False
    return True


FITTING = [pair for pair in product(SCHEDULES, SAMPLERS) if fit_together(*pair)]


def test_every_schedule_and_every_sampler_has_a_partner() -> None:
    assert {schedule for schedule, _ in FITTING} == set(SCHEDULES)
    assert {sampler for _, sampler in FITTING} == set(SAMPLERS)


@pytest.mark.parametrize(("schedule", "sampler"), FITTING)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_generation(
    diffuser_training: DiffuserTraining, episodes: Episodes, schedule: str, sampler: str, prediction: str
) -> None:
    diffusion = DiffusionConfig(schedule, LEVELS, prediction, sampler)
    training = dataclasses.replace(diffuser_training, diffusion=diffusion)
    with on_meta():
        task = training.learning_task(*make_resident(training, episodes, META), META)
        assert isinstance(task, DiffuserLearning)
        prompts = task.diffuser.prompts_for(task.pool, 3, "test")
    assert {getattr(prompts, field.name).device for field in dataclasses.fields(Segments)} == {META}


@pytest.mark.parametrize("attention", ["full", "banded"])
@pytest.mark.parametrize("heads", [1, 2])
def test_decoding(attention: str, heads: int) -> None:
    model = network(attention=attention, heads=heads).float().to(META)
    with on_meta():
        decoder = make_decoder(model, ROWS, torch.float32)
        decoder.start(torch.arange(ROWS, device=META), segments(ROWS, 3, 1).to(META))
        for _ in range(HORIZON // 2):
            inputs = (torch.zeros(ROWS, *shape, device=META) for shape in ((ACTION_DIM,), (), (STATE_DIM,)))
            assert decoder.decide(*inputs).device == META
        decoder.start(torch.tensor([1], device=META), segments(1, 3, 1).to(META))
        decoder.keep(torch.tensor([0, 2], device=META))
