"""Compare samplers on one and the same diffusers by the downstream loss behind the prompts that they generate.

    python jobs/sampler_table.py quickstart

Diffusers are trained multi-task on the experiment's backbone, one a training seed. On the validation tasks each sampler
then makes prompts from a few-shot set, and what is compared is L_DT, the mean squared action error of the frozen
backbone, on the windows of episodes that the few-shot set does not hold. Samplers see the same windows, conditions
and task contexts, so their differences are paired. Two rows say what the numbers mean: real prompts of the few-shot
set, and real prompts of other tasks.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import tyro
from rich.table import Table

from promptdiffuser.console import print_table
from promptdiffuser.data.plans import Rounds, held_out_plan
from promptdiffuser.data.windows import PromptPool
from promptdiffuser.diffusion.process import Diffusion, DiffusionConfig
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Stage, StageRun, Workspace
from promptdiffuser.pipeline.stages import collect, pretrain, train_diffuser
from promptdiffuser.recipes.quickstart import quickstart
from promptdiffuser.rng import numpy_generator
from promptdiffuser.statistics.paired import paired_difference
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.few_shot import DRAWS, held_out_loss, loss_behind
from promptdiffuser.training.precision import resolve_precisions
from promptdiffuser.training.trainings import make_resident

CPU = torch.device("cpu")
LOSSES = "losses.parquet"
FEW_SHOT, OTHER_TASKS = "few-shot prompts", "other tasks' prompts"


@dataclass(frozen=True)
class SamplerTable:
    """Command line of the job."""

    job: Annotated[JobOptions, tyro.conf.arg(name="")]
    diffuser: str = "context"
    """Which diffuser is trained, multi-task only."""
    samplers: tuple[str, ...] = ("ddpm:50", "ddim:50", "ddim:5", "dpm-solver:5", "ddpm:5")
    """NAME:LEVELS of the samplers to compare; the first is the one that the others are compared with."""
    training_seeds: int = 3
    """Diffusers, from the experiment's seed on."""
    generation_seeds: int = 5
    """Times that each diffuser generates a prompt for every window and draw."""
    held_out_episodes: int = 5
    """Episodes of a task that the windows come from, the first ones after the few-shot set."""

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        for name in ("training_seeds", "generation_seeds", "held_out_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(set(self.samplers)) < 2:
            raise ValueError(f"samplers must name at least two, got {self.samplers}")
        if self.diffuser not in DIFFUSERS:
            raise ValueError(f"diffuser {self.diffuser!r} is unknown; known: {', '.join(DIFFUSERS)}")
        for sampler in self.samplers:
            process_of(sampler, self.job.experiment.diffusion)


def process_of(sampler: str, trained: DiffusionConfig) -> DiffusionConfig:
    """Return the process of a diffuser as another sampler runs it."""
    name, _, levels = sampler.partition(":")
    if not levels.isdigit() or int(levels) == 0:
        raise ValueError(f"samplers has {sampler!r}; write NAME:LEVELS, such as ddim:5")
    return dataclasses.replace(trained, sampler=name, sampling_steps=int(levels))


def seeded(workspace: Workspace, seed: int) -> Workspace:
    """Return the experiment with another seed, but on the same dataset and backbone."""
    options = dataclasses.replace(
        workspace.options,
        experiment=dataclasses.replace(workspace.experiment, seed=seed),
        dataset=collect.dataset_location(workspace),
        backbone_checkpoint=pretrain.backbone_folder(workspace),
    )
    return Workspace(options)


def training_stage(workspace: Workspace, diffuser: str) -> Stage:
    """Return the stage that trains a diffuser, named by the seed so that several fit below one run."""
    stage = train_diffuser.stage(workspace, diffuser)
    return dataclasses.replace(stage, name=f"{stage.name}-seed-{workspace.experiment.seed}")


def losses_stage(workspace: Workspace, table: SamplerTable, trained: Path) -> Stage:
    """Return the stage that generates with every sampler and measures the loss; its result is losses.parquet."""
    experiment, dataset = workspace.experiment, pretrain.checked_dataset(workspace)
    tasks, few_shot = dataset.family.validation_tasks, experiment.evaluation.few_shot
    both = dataclasses.replace(few_shot, episodes=few_shot.episodes + table.held_out_episodes)
    training = dataclasses.replace(
        train_diffuser.training_of(workspace, table.diffuser),
        stage="sampler-table",
        start_from=trained / "model",
        guidance_start=0,
        held_out_episodes=table.held_out_episodes,
        rounds=Rounds(),
    )
    settings = {
        "samplers": table.samplers,
        "generation_seeds": table.generation_seeds,
        "few_shot_and_held_out": dataclasses.asdict(both),
        "diffuser": resolve_precisions(train_diffuser.settings_of(training), CPU),
    }

    def work(run: StageRun) -> None:
        torch.set_num_threads(1)
        run.expect(len(tasks) * table.generation_seeds)
        _, others = make_resident(training, dataset.read(dataset.family.train_tasks, experiment.quality), CPU)
        rows = []
        for task in tasks:
            resident, pool = make_resident(training, dataset.few_shot([task], both), CPU)
            for seed in range(table.generation_seeds):
                generating = dataclasses.replace(training, stage=f"sampler-table-{task}", seed=seed)
                losses = losses_of(generating.learning_task(resident, pool, CPU), table.samplers, others)
                rows += [(name, experiment.seed, task, seed, loss) for name, loss in losses.items()]
                run.advance()
        frame = pd.DataFrame(rows, columns=["sampler", "training_seed", "task", "generation_seed", "loss_dt"])
        frame.to_parquet(run.folder / LOSSES)
        run.run.log_artifact(run.folder / LOSSES)
        for name, mean in frame.groupby("sampler")["loss_dt"].mean().items():
            run.run.log_metrics({f"validation/loss_dt/{metric_name(str(name))}": mean})

    name = f"sampler-losses-seed-{experiment.seed}"
    command = "python jobs/sampler_table.py quickstart"
    return Stage(name, "sampler-losses", settings, work, command, outputs=(Path(LOSSES),))


def metric_name(prompts_from: str) -> str:
    """Return a name as MLflow allows it."""
    return prompts_from.replace(":", "-").replace("'", "").replace(" ", "-")


def losses_of(learning: DiffuserLearning, samplers: tuple[str, ...], others: PromptPool) -> dict[str, float]:
    """Return L_DT on the held-out windows of a task behind the prompts of every sampler, and behind real ones."""
    plan = held_out_plan(learning.downstream_planner, learning.pool.index, DRAWS)
    diffuser, losses = learning.diffuser, {}
    trained = diffuser.diffusion
    for sampler in samplers:
        diffuser.diffusion = Diffusion(process_of(sampler, trained.config), trained.low_X, trained.high_X)
        losses[sampler] = held_out_loss(learning, dict(learning.model.state_dict()))
    losses[FEW_SHOT] = loss_behind(learning, plan, learning.pool.prompts_at(plan.prompt_episodes))
    drawn = numpy_generator(*learning.address, "other-tasks").integers(0, len(others.prompts), len(plan.episodes))
    losses[OTHER_TASKS] = loss_behind(learning, plan, others.prompts_at(drawn))
    return losses


def compared(losses: pd.DataFrame, samplers: tuple[str, ...]) -> Table:
    """Return the table. Intervals are over trainings or, with a single training, over its generations."""
    # Pairing asks for the columns of episodes: here a "return" is a loss, and a prompt what a seed generates.
    frame = losses.rename(columns={"sampler": "method", "loss_dt": "return", "generation_seed": "prompt"})
    frame = frame.assign(episode=0, **dict.fromkeys(("prompt_source", "seed", "start"), frame["prompt"]))
    seeds, tasks = losses["training_seed"].nunique(), losses["task"].nunique()
    title = f"{seeds} diffusers, {tasks} validation tasks, {losses['generation_seed'].nunique()} generations each"
    table = Table(title=title)
    for column in ("prompts from", "L_DT", f"minus {samplers[0]}", "95 % interval", "relative", "95 % interval"):
        table.add_column(column, justify="left" if column == "prompts from" else "right", no_wrap=True)
    means = losses.groupby("sampler")["loss_dt"].mean()
    baseline = means[samplers[0]]
    for name in (*samplers, FEW_SHOT, OTHER_TASKS):
        cells = [name, f"{means[name]:.5f}"]
        if name != samplers[0]:
            difference = paired_difference(frame, name, samplers[0]).on_these_tasks
            low, high = difference.low, difference.high
            absolute, relative = f"{low:+.5f} to {high:+.5f}", f"{low / baseline:+.1%} to {high / baseline:+.1%}"
            if not difference.is_known:
                absolute = relative = "–"
            cells += [f"{difference.estimate:+.5f}", absolute, f"{difference.estimate / baseline:+.1%}", relative]
        table.add_row(*cells)
    return table


def main(table: SamplerTable) -> None:
    """Make dataset and backbone if needed, train the diffusers, measure, and print the table."""
    with Workspace(table.job, title="sampler-table", kind="benchmark") as workspace:
        seeds = range(workspace.experiment.seed, workspace.experiment.seed + table.training_seeds)
        own_names = [
            f"{name}-seed-{seed}" for seed in seeds for name in (f"diffuser-{table.diffuser}", "sampler-losses")
        ]
        workspace.check_rerun(["collect", "pretrain", *own_names])
        if table.job.dataset is None:
            workspace.run(collect.stage(workspace))
        if table.job.backbone_checkpoint is None:
            workspace.run(pretrain.stage(workspace))
        folders = []
        for seed in seeds:
            own = seeded(workspace, seed)
            trained = workspace.run(training_stage(own, table.diffuser))
            folders.append(workspace.run(losses_stage(own, table, trained)))
        losses = pd.concat([pd.read_parquet(folder / LOSSES) for folder in folders])
    print_table(workspace.console, compared(losses, table.samplers))


def quickstart_of_fifty_levels() -> SamplerTable:
    """The quickstart's backbone; diffusers of N = 50 levels, guided by one prediction, which favours no sampler."""
    base = quickstart()
    return SamplerTable(
        JobOptions(
            dataclasses.replace(
                base,
                diffusion=dataclasses.replace(base.diffusion, steps=50),
                guidance=dataclasses.replace(base.guidance, path="one-step"),
            )
        )
    )
