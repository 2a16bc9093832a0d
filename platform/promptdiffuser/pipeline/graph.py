"""The graph of stages: what each result is made from, known before anything is made.

A `Stage` declares its inputs, the settings that decide its result, the version of its numbers, what it leaves and how
it is made. Its key is a hash of all but the last two. Building a graph reads no storage, except the manifests of what
the user passes (`Given`), and imports neither Ray nor MLflow.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptdiffuser.errors import UserError
from promptdiffuser.keys import fingerprint

if TYPE_CHECKING:  # It imports MLflow.
    from promptdiffuser.pipeline.session import StageRun


@dataclass(frozen=True)
class Given:
    """A dataset or a backbone that the user passes."""

    name: str
    location: str
    content: str
    """Identifies what lies there."""

    @property
    def key(self) -> str:
        """Its content."""
        return self.content


@dataclass(frozen=True)
class Part:
    """A piece of a stage's result that has a key of its own, such as the adaptations by one method.

    Its folder lies beside those of the stages, so that other stages whose part has the same key share it.
    """

    name: str
    key: str
    folder: Path
    """Relative to the folder of the experiment."""
    checkpoints: tuple[Path, ...] = ()
    """Checkpoint folders that it leaves, relative to its own folder: verified by their own manifests."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of an experiment."""

    name: str
    kind: str
    """collect, pretrain, optimise-prompts, train-diffuser, adapt, evaluate, ...: its tag in MLflow."""
    command: str
    """What makes it, for the error that misses it."""
    settings: Mapping[str, Any]
    """What decides its result besides its inputs."""
    work: Callable[["StageRun"], None]
    version: int = 1
    """Raised by hand whenever its numbers change with equal settings and inputs."""
    inputs: Mapping[str, "Stage | Given"] = field(default_factory=dict)
    """Name -> what it reads."""
    outputs: tuple[Path, ...] = ()
    """Files that it leaves, and folders of them, in its folder: kept with their checksums in its record."""
    checkpoints: tuple[Path, ...] = ()
    """Checkpoint folders that it leaves, relative to its own folder: verified by their own manifests."""
    parts: tuple[Part, ...] = ()
    """Pieces of its result that lie outside its folder; made again with it."""
    product: Path = Path()
    """What its readers open, relative to its folder."""
    takes: str = ""
    """What of the cluster it takes."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags of its run, such as its method."""
    content_of: Callable[[Path], str] | None = None
    """Identifies the result in a folder by what its readers see of it; by default, all outputs and checkpoints do."""
    progress: Callable[[Path, Path], str] | None = None
    """Says how far an unfinished stage is, from the folder of the experiment and its own, which need not exist."""

    @cached_property
    def key(self) -> str:
        """Identify the result: 16 hexadecimal digits."""
        inputs = {name: node.key for name, node in self.inputs.items()}
        parts = {part.name: part.key for part in self.parts}
        return fingerprint([self.name, self.version, self.settings, inputs, parts])

    @property
    def folder(self) -> Path:
        """Where it writes, relative to the folder of the experiment."""
        return Path(f"{self.name}-{self.key[:8]}")


class Graph:
    """Stages in an order in which they can be made, each once."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        """Order the stages and all that they need."""
        self._by_key: dict[str, Stage] = {}
        for stage in stages:
            self._add(stage)

    def _add(self, stage: Stage) -> None:
        if stage.key in self._by_key:
            return
        for needed in stage.inputs.values():
            if isinstance(needed, Stage):
                self._add(needed)
        self._by_key[stage.key] = stage

    def __iter__(self) -> Iterator[Stage]:
        """Yield the stages, each after all that it needs."""
        return iter(self._by_key.values())

    def of_kind(self, *kinds: str) -> list[Stage]:
        """Return the stages of some kinds."""
        return [stage for stage in self if stage.kind in kinds]


def check_names(stages: Iterable[Stage], option: str, names: tuple[str, ...]) -> None:
    """Check that an option names some of the stages of a command; raises `UserError`."""
    known = dict.fromkeys(stage.name for stage in stages)
    for name in names:
        if name not in known:
            raise UserError(f"{option} names {name!r}, which is no stage of this command; known: {', '.join(known)}")
