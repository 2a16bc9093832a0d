"""Options of the commands that run experiments, sweeps and benchmarks; their stages are not imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptdiffuser.experiment import Experiment
from promptdiffuser.paths import local_path
from promptdiffuser.recipes.benchmarks import Benchmark
from promptdiffuser.sweeps.sweep import Sweep


@dataclass(frozen=True)
class JobOptions:
    """Command line of a job."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    outputs: Path = Path("outputs")
    """Folder below which the experiment writes everything; shared storage on a cluster of several machines."""
    dataset: str | None = None
    """Dataset (a folder, or s3:// or gs:// address) to use instead of the one that the experiment's own collect stage
    writes."""
    backbone_checkpoint: Path | None = None
    """Backbone folder to use instead of the one that the experiment's own pretrain stage writes."""
    rerun: tuple[str, ...] = ()
    """Stages to make again though they are done, by the names that are printed."""
    accept_stale: bool = False
    """Take over finished stages that other source made as what the present source would make, and say so no more."""

    def __post_init__(self) -> None:
        """Check that outputs and the backbone are on a filesystem of this machine."""
        local_path(self.outputs)
        if self.backbone_checkpoint is not None:
            local_path(self.backbone_checkpoint)


@dataclass(frozen=True)
class SweepOptions:
    """Command line of a sweep."""

    sweep: Annotated[Sweep, tyro.conf.arg(name="")]
    space: tuple[str, ...] = ()
    """Fields to add to the space, or to change in it: FIELD=a,b,c or FIELD=low..high or FIELD=log:low..high, such as
    guidance.weight=log:0.1..20. FIELD= drops a field, which then has the base experiment's value."""
    confirm: bool = False
    """Run the whole pipeline on the best configuration, with fresh seeds, and evaluate it on the test tasks."""
    outputs: Path = Path("outputs")
    """Folder below which the experiment writes everything."""
    dataset: str | None = None
    """Dataset to use instead of the one that the base experiment's own collect stage writes."""
    backbone_checkpoint: Path | None = None
    """Backbone folder to use instead of the one that its own pretrain stage writes."""
    rerun: tuple[str, ...] = ()
    """Stages to make again, by the names that are printed: collect, pretrain."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """Command line of a benchmark."""

    benchmark: Annotated[Benchmark, tyro.conf.arg(name="")]
    arms: tuple[str, ...] = ()
    """Names of the arms to run; all of them if none is named."""
    outputs: Path = Path("outputs")
    """Folder below which the experiment writes everything."""
    dataset: str | None = None
    """Dataset to use instead of the one that the benchmark collects; of its only family."""
    backbone_checkpoint: Path | None = None
    """Backbone folder to use instead of the one that the benchmark pre-trains; of its only family."""
    rerun: tuple[str, ...] = ()
    """Stages to make again, by the names that are printed, in every cell that has one of that name."""

    def __post_init__(self) -> None:
        """Refuse data or a backbone of one family for several."""
        if len(self.benchmark.families) > 1 and (self.dataset or self.backbone_checkpoint):
            raise ValueError("dataset and backbone_checkpoint are of one family; name one with --families")
