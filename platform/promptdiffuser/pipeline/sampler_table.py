"""Compare samplers on one and the same diffusers by the downstream loss behind the prompts that they generate.

    promptdiffuser sampler-table quickstart

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

from promptdiffuser.assembly import located
from promptdiffuser.console import print_table
from promptdiffuser.data.plans import Rounds, held_out_plan
from promptdiffuser.data.windows import PromptPool
from promptdiffuser.diffusion.process import Diffusion, DiffusionConfig
from promptdiffuser.keys import deciding
from promptdiffuser.methods.backbones import PROMPTED
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.pipeline.experiment_graph import Base, base_of
from promptdiffuser.pipeline.graph import Graph, Stage, check_names
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Session, StageRun
from promptdiffuser.pipeline.stages import train_diffuser
from promptdiffuser.pipeline.stages.train_diffuser import DiffuserStage
from promptdiffuser.recipes.quickstart import quickstart
from promptdiffuser.rng import numpy_generator
from promptdiffuser.statistics.paired import paired_difference
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.few_shot import DRAWS, held_out_loss, loss_behind
from promptdiffuser.training.precision import resolve_precisions
from promptdiffuser.training.trainings import make_resident

CPU = torch.device("cpu")
LOSSES = "losses.parquet"
VERSION = 1
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


class SamplerGraph:
    """The stages of a table: the base's, and for each seed a diffuser's training and its losses by every sampler."""

    def __init__(self, table: SamplerTable) -> None:
        """Declare all stages."""
        self.base = base_of(table.job, (PROMPTED,))
        first = table.job.experiment.seed
        self.trainings, self.losses = list[Stage](), list[Stage]()
        for seed in range(first, first + table.training_seeds):
            trained = self._training(table, seed)
            self.trainings.append(trained.stage)
            self.losses.append(losses_stage(self.base, table, trained))

    @property
    def graph(self) -> Graph:
        """All stages."""
        return Graph([*self.base.stages, *self.losses])

    def _training(self, table: SamplerTable, seed: int) -> DiffuserStage:
        """Return a diffuser's training with a seed, named by it so that several fit below one run."""
        experiment, base = dataclasses.replace(table.job.experiment, seed=seed), self.base
        diffuser, backbone = table.diffuser, base.backbones[PROMPTED]
        optimised, start = None, None
        if DIFFUSERS[diffuser].learns_optimised_prompts:
            optimised = train_diffuser.optimised_prompts(experiment, base.dataset, backbone)
        if experiment.diffuser.denoising_steps:
            start = train_diffuser.denoising(experiment, base.dataset, backbone, diffuser, optimised).stage
        made = train_diffuser.multi_task(experiment, base.dataset, backbone, diffuser, start, optimised)
        return dataclasses.replace(made, stage=dataclasses.replace(made.stage, name=f"{made.stage.name}-seed-{seed}"))


def losses_stage(base: Base, table: SamplerTable, trained: DiffuserStage) -> Stage:
    """Return the stage that generates with every sampler and measures the loss; its result is losses.parquet."""
    experiment = trained.experiment
    few_shot = experiment.evaluation.few_shot
    both = dataclasses.replace(few_shot, episodes=few_shot.episodes + table.held_out_episodes)
    training = dataclasses.replace(
        trained.training, stage="sampler-table", guidance_start=0, held_out_episodes=table.held_out_episodes
    )
    settings = {
        "samplers": table.samplers,
        "generation_seeds": table.generation_seeds,
        "few_shot_and_held_out": deciding(both),
        "diffuser": resolve_precisions(deciding(training), CPU),
    }

    def work(run: StageRun) -> None:
        torch.set_num_threads(1)
        dataset = run.dataset(experiment)
        here = located(training, experiment, dataset, run.product("backbone"), run.product("diffuser"))
        here = dataclasses.replace(here, rounds=Rounds())  # a few episodes are resident
        tasks = dataset.family.validation_tasks
        run.expect(len(tasks) * table.generation_seeds)
        _, others = make_resident(here, dataset.read(dataset.family.train_tasks, experiment.quality), CPU)
        rows = []
        for task in tasks:
            resident, pool = make_resident(here, dataset.few_shot([task], both), CPU)
            for seed in range(table.generation_seeds):
                generating = dataclasses.replace(here, stage=f"sampler-table-{task}", seed=seed)
                losses = losses_of(generating.learning_task(resident, pool, CPU), table.samplers, others)
                rows += [(name, experiment.seed, task, seed, loss) for name, loss in losses.items()]
                run.advance()
        frame = pd.DataFrame(rows, columns=["sampler", "training_seed", "task", "generation_seed", "loss_dt"])
        frame.to_parquet(run.folder / LOSSES)
        run.log.log_artifact(run.folder / LOSSES)
        for name, mean in frame.groupby("sampler")["loss_dt"].mean().items():
            run.log.log_metrics({f"validation/loss_dt/{metric_name(str(name))}": mean})

    return Stage(
        f"sampler-losses-seed-{experiment.seed}",
        "sampler-losses",
        f"promptdiffuser sampler-table {experiment.name}",
        settings,
        work,
        VERSION,
        {"dataset": base.dataset, "backbone": base.backbones[PROMPTED].node, "diffuser": trained.stage},
        outputs=(Path(LOSSES),),
        takes="1 CPU",
    )


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
    stages = SamplerGraph(table)
    check_names(stages.graph, "--rerun", table.job.rerun)
    with Session(table.job, "sampler-table", "benchmark") as session:
        session.make(stages.graph)
        losses = pd.concat([pd.read_parquet(session.product(stage) / LOSSES) for stage in stages.losses])
    print_table(session.console, compared(losses, table.samplers))


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
