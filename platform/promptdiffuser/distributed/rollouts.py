"""A pool of rollout actors that survives the death of its members.

Ray's own ActorPool drops a dead actor and raises; here Ray restarts the actor and the pool runs the lost blocks again,
on whichever actor is free. Blocks are addressed by seed, so a block that ran twice gives the same result twice.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from promptdiffuser.evaluation.stepping import EpisodeStepper
from promptdiffuser.learning.allocator import keep_freed_memory
from promptdiffuser.memory import peak_gib
from promptdiffuser.tasks import get_family

BLOCK_ATTEMPTS = 3
"""Deaths of an actor in the middle of a block after which the block is given up."""
SILENT_RESTARTS = 3
"""Deaths in a row without a finished block after which an actor is given up."""
BLOCKS_IN_FLIGHT = 2
"""Blocks handed to an actor at a time: one runs, one waits, so that no actor idles between two."""

Result = TypeVar("Result", covariant=True)


class Block(Protocol[Result]):
    """A fixed piece of rollout work."""

    def run(self, stepper: EpisodeStepper, shared: Any, /) -> Result:
        """Run it; the same block gives the same result on any actor."""


class RolloutActor:
    """Owns simulators of one family and runs blocks on one core, and on a GPU if it has a share of one."""

    def __init__(self, family: str, on_gpu: bool) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._stepper = EpisodeStepper(get_family(family), torch.device("cuda" if on_gpu else "cpu"))
        self._publication: Any = None
        self._shared: Any = None

    # Without retries a call is refused while Ray starts the actor again.
    @ray.method(max_task_retries=SILENT_RESTARTS)
    def ready(self) -> None:
        """Answer once the actor has started."""

    def run(self, block: Block[Any], publication: list[Any]) -> tuple[Any, float]:
        """Run a block with what was published to all actors; return its result and the process's peak memory, GiB.

        `publication` holds the reference: Ray would unpickle an argument for every block, which may take longer than
        the block where many policies have weights of their own.
        """
        if publication != self._publication:
            self._publication = self._shared = None  # what was published before goes first
            self._publication, self._shared = publication, ray.get(publication[0])
        result = block.run(self._stepper, self._shared)
        return result, peak_gib()


@dataclass(eq=False)
class _Member:
    """An actor as the pool sees it."""

    actor: Any
    blocks: dict[Any, int] = field(default_factory=dict)
    """Reference of the answer -> number of the block, oldest first: the first one runs, the others wait."""
    deaths: int = 0
    """Deaths since it last finished a block."""


class RolloutPool:
    """Runs blocks on actors; may be handed to other Ray processes, which then share the actors."""

    def __init__(self, family: str, num_actors: int, gpus_per_actor: float = 0.0) -> None:
        """Start the actors; those for which the cluster has room work at once, others when it has."""
        remote_actor: Any = ray.remote(num_cpus=1, num_gpus=gpus_per_actor, max_restarts=-1)(RolloutActor)
        self._actors = [remote_actor.remote(family, gpus_per_actor > 0) for _ in range(num_actors)]
        self.peak_memory_gib = 0.0
        """Largest memory that an actor has held so far, of those that this copy of the pool has heard of."""

    def run(self, blocks: Sequence[Block[Result]], shared: Any) -> Iterator[tuple[Block[Result], Result]]:
        """Yield (block, result) as they finish; `shared` is published once.

        No more than `BLOCKS_IN_FLIGHT` results an actor wait to be taken, however slowly they are.

        Raises:
            RuntimeError: A block's actor died `BLOCK_ATTEMPTS` times, or no actor can be started.
        """
        publication = [ray.put(shared)]
        waiting, attempts = deque(range(len(blocks))), Counter[int]()
        # An actor is given work once it has answered: one that still waits for a place in the cluster holds nobody up.
        starting = {actor.ready.remote(): _Member(actor) for actor in self._actors}
        working, alive = dict[Any, _Member](), list[_Member]()
        while waiting or working:
            # While others start, nobody takes a block to wait: it may be theirs.
            for ahead in range(1 if starting else BLOCKS_IN_FLIGHT):
                for member in alive:
                    if waiting and len(member.blocks) == ahead:
                        number = waiting.popleft()
                        answer = member.actor.run.remote(blocks[number], publication)
                        member.blocks[answer], working[answer] = number, member
            if not starting and not working:
                raise RuntimeError(f"every rollout actor died {SILENT_RESTARTS} times without finishing a block")
            (answer,), _ = ray.wait([*starting, *working], num_returns=1)
            if answer in starting:
                member = starting.pop(answer)
                if _has_started(answer):
                    alive.append(member)
                else:
                    self._restart(member, starting)
                continue
            member = working.pop(answer)
            number = member.blocks.pop(answer)
            try:
                result, memory_gib = ray.get(answer)
            except RayActorError as error:
                attempts[number] += 1
                if attempts[number] == BLOCK_ATTEMPTS:
                    raise RuntimeError(f"{blocks[number]} ended its actor {BLOCK_ATTEMPTS} times") from error
                # The blocks that waited behind it are not to blame.
                waiting.extendleft([*reversed(member.blocks.values()), number])
                working = {other: owner for other, owner in working.items() if owner is not member}
                member.blocks.clear()
                alive.remove(member)
                self._restart(member, starting)
                continue
            except RayTaskError as error:
                raise error.cause from error
            member.deaths = 0
            self.peak_memory_gib = max(self.peak_memory_gib, memory_gib)
            yield blocks[number], result

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)

    @staticmethod
    def _restart(member: _Member, starting: dict[Any, _Member]) -> None:
        """Wait for Ray to start the actor again, unless it only ever dies."""
        member.deaths += 1
        if member.deaths < SILENT_RESTARTS:
            starting[member.actor.ready.remote()] = member


def _has_started(answer: Any) -> bool:
    try:
        ray.get(answer)
    except RayActorError:
        return False
    return True
