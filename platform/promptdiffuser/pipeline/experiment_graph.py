"""The graph of an experiment: which stages it has and which of them read which."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import get_method
from promptdiffuser.methods.backbones import PROMPTED, backbone_config
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.pipeline.graph import Given, Graph, Stage
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.stages import adapt, collect, evaluate, pretrain, train_diffuser
from promptdiffuser.pipeline.stages.adapt import MethodPlan
from promptdiffuser.pipeline.stages.pretrain import Backbone
from promptdiffuser.pipeline.stages.train_diffuser import DiffuserStage


@dataclass(frozen=True)
class Base:
    """What the experiments of a benchmark or a sweep share: dataset, backbones and tuned training prompts."""

    experiment: Experiment
    dataset: Stage | Given
    backbones: Mapping[str, Backbone]
    """Those that the methods adapt, by variant."""

    @cached_property
    def optimised_prompts(self) -> Stage | None:
        """The tuned prompts of the training tasks, if a diffuser learns them."""
        if not any(DIFFUSERS[name].learns_optimised_prompts for name in diffusers_of(self.experiment)):
            return None
        return train_diffuser.optimised_prompts(self.experiment, self.dataset, self.backbones[PROMPTED])

    @property
    def stages(self) -> list[Stage]:
        """Its stages without what the user passes and without the tuned prompts."""
        nodes = (self.dataset, *(backbone.node for backbone in self.backbones.values()))
        return [node for node in nodes if isinstance(node, Stage)]


def base_of(options: JobOptions, variants: tuple[str, ...] | None = None) -> Base:
    """Return what an experiment starts from; raises `UserError` if a dataset or a backbone that is passed is not there.

    Args:
        options: The experiment, and what is passed.
        variants: Backbones to have; by default those that its methods adapt.
    """
    experiment = options.experiment
    dataset = collect.stage(experiment) if options.dataset is None else collect.given(options.dataset)
    backbones = dict[str, Backbone]()
    wanted = (get_method(name).backbone for name in experiment.methods) if variants is None else variants
    for variant in dict.fromkeys(wanted):
        if variant == PROMPTED and options.backbone_checkpoint is not None:
            backbones[variant] = pretrain.given(options.backbone_checkpoint, experiment.family)
        else:
            config = backbone_config(variant, experiment.backbone)
            backbones[variant] = Backbone(pretrain.stage(experiment, dataset, variant), config)
    return Base(experiment, dataset, backbones)


def diffusers_of(experiment: Experiment) -> list[str]:
    """Return the diffusers that the experiment's methods need, each once."""
    needed = (get_method(name).diffuser for name in experiment.methods)
    return list(dict.fromkeys(diffuser for diffuser in needed if diffuser is not None))


class ExperimentGraph:
    """The stages of one experiment."""

    def __init__(self, experiment: Experiment, base: Base, is_cell: bool = False) -> None:
        """Declare all stages.

        Args:
            experiment: The experiment.
            base: What it starts from.
            is_cell: Whether it is one of many in a benchmark, which makes the work of all side by side before each
                stage, and does not look into diffusers.
        """
        self.experiment, self.base = experiment, base
        self.denoising, self.diffusers = dict[str, DiffuserStage](), dict[str, DiffuserStage]()
        for name in diffusers_of(experiment):
            common = (experiment, base.dataset, base.backbones[PROMPTED], name)
            start = None
            if experiment.diffuser.denoising_steps:
                self.denoising[name] = train_diffuser.denoising(*common, base.optimised_prompts, is_cell)
                start = self.denoising[name].stage
            self.diffusers[name] = train_diffuser.multi_task(*common, start, base.optimised_prompts, is_cell)
        self.plans: list[MethodPlan] = [
            adapt.plan(experiment, base.dataset, base.backbones, self.diffusers, name) for name in experiment.methods
        ]
        self.adapt = adapt.stage(experiment, self.plans, looks_inside=not is_cell)
        self.evaluate = evaluate.stage(experiment, self.plans, self.adapt)

    @property
    def graph(self) -> Graph:
        """All stages."""
        return Graph([*self.base.stages, self.evaluate])


def graph_of(options: JobOptions) -> ExperimentGraph:
    """Return the graph of an experiment on its own."""
    return ExperimentGraph(options.experiment, base_of(options))
