"""Named sweeps: how the downstream loss guides, how prompts are generated, how a backbone is pre-trained."""

from dataclasses import replace

from promptdiffuser.experiment import Experiment
from promptdiffuser.recipes.quickstart import quickstart
from promptdiffuser.sweeps.space import Choices, Range
from promptdiffuser.sweeps.sweep import Sweep


def _short(steps: int, guidance_start: int) -> Experiment:
    """Return the quickstart with a shorter training of the diffuser; the backbone is the quickstart's."""
    base = quickstart()
    multi_task = replace(base.diffuser.multi_task, steps=steps, checkpoint_every=100)
    return replace(
        base,
        # The downstream loss is nearly all of a trial's time.
        guidance=replace(base.guidance, batch_size=16),
        diffuser=replace(base.diffuser, multi_task=multi_task, guidance_start=guidance_start),
    )


def quickstart_guidance() -> Sweep:
    """Guidance weight x noise schedule, 24 short trainings on the quickstart's backbone, poor ones stopped by ASHA."""
    return Sweep(
        name="quickstart-guidance",
        experiment=_short(steps=600, guidance_start=150),
        space={
            "guidance.weight": Choices((0.0, 0.5, 1.0, 2.0, 5.0, 10.0)),
            "diffusion.schedule": Choices(("vp", "cosine", "linear", "sigmoid")),
        },
        stopping="asha",
        score_every=300,
    )


def quickstart_generation() -> Sweep:
    """How prompts are generated, and how the diffuser learns: twelve points by TPE, the poor ones stopped early."""
    return Sweep(
        name="quickstart-generation",
        experiment=_short(steps=600, guidance_start=150),
        space={
            "guidance.weight": Range(0.1, 20.0, log=True),
            "guidance.projection": Choices(("complement", "conflict", "sum")),
            "diffusion.steps": Range(3, 12),
            "diffusion.temperature": Range(0.3, 1.0),
            "denoiser.condition_weight": Choices((1.0, 1.2, 1.5)),
            "denoiser.condition_dropout": Choices((0.1, 0.25)),
            "diffuser.multi_task.learning_rate": Range(1e-4, 3e-3, log=True),
        },
        search="tpe",
        trials=12,
        stopping="median",
        score_every=200,
    )


def quickstart_population() -> Sweep:
    """Eight trainings of a diffuser that take over each other's weights, guidance weights and step sizes."""
    return Sweep(
        name="quickstart-population",
        experiment=_short(steps=800, guidance_start=150),
        space={
            "guidance.weight": Range(0.1, 20.0, log=True),
            "diffuser.multi_task.learning_rate": Range(1e-4, 3e-3, log=True),
        },
        search="random",
        trials=8,
        stopping="population",
        score_every=200,
    )


def quickstart_backbone() -> Sweep:
    """Prompt length and step size of the backbone's pre-training, each trial on Ray Train, stopped by ASHA."""
    base = quickstart()
    return Sweep(
        name="quickstart-backbone",
        experiment=replace(base, cluster=replace(base.cluster, train_workers=1, rollout_actors=2)),
        space={
            "backbone.prompt_length": Choices((3, 5, 10)),
            "pretraining.optimisation.learning_rate": Choices((3e-4, 1e-3)),
        },
        method="prompt-dt",
        stopping="asha",
        score_every=300,
    )
