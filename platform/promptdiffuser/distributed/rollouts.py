"""A pool of rollout actors that survives the death of its members.

Ray's own ActorPool drops a dead actor and raises; here Ray restarts the actor and the pool runs the lost blocks again,
on whichever actor is free. Blocks are addressed by seed, so a block that ran twice gives the same result twice.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from promptdiffuser.experiment import BLOCK_LIMIT_S
from promptdiffuser.memory import peak_gib
from promptdiffuser.rollout.stepping import EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.training.allocator import keep_freed_memory

BLOCK_ATTEMPTS = 3
"""Deaths of an actor in the middle of a block after which the block is given up; a block that takes too long is one."""
START_ATTEMPTS = 3
"""Deaths in a row while starting after which an actor is given up."""
START_POLL_S = 5.0
"""Interval at which the restarts of actors that have not answered are counted."""
BLOCKS_IN_FLIGHT = 2
"""Blocks handed to an actor at a time: one runs, one waits, so that no actor idles between two."""


class Block(Protocol):
    """A fixed piece of rollout work."""

    def run(self, stepper: EpisodeStepper, shared: Any, /) -> Any:
        """Run it; the same block gives the same result on any actor."""


BlockT = TypeVar("BlockT", bound=Block)


class RolloutActor:
    """Owns simulators of one family and runs blocks on one core, and on a GPU if it has a share of one."""

    def __init__(self, family: str, on_gpu: bool) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._stepper = EpisodeStepper(get_family(family), torch.device("cuda" if on_gpu else "cpu"))
        self._publication: Any = None
        self._shared: Any = None

    # However often the call is refused while Ray starts the actor again; the pool counts the starts.
    @ray.method(max_task_retries=-1)
    def ready(self) -> None:
        """Answer once the actor has started."""

    def run(self, block: Block, publication: list[Any]) -> tuple[Any, float]:
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
    since: float = 0.0
    """Time at which the first of its blocks came to the front, or at which it was killed as overdue."""
    overdue: bool = False
    """Whether it was killed because the first of its blocks took too long."""
    restarts: int = 0
    """Restarts when it was last asked to start."""

    def ask(self) -> Any:
        """Ask whether it has started; the answer comes once it has."""
        self.restarts = _restarts(self.actor)
        return self.actor.ready.remote()


class RolloutPool:
    """Runs blocks on actors; may be handed to other Ray processes, which then share the actors.

    A context that ends the actors, so that their CPUs are free for the next pool.
    """

    def __init__(
        self, family: str, num_actors: int, gpus_per_actor: float = 0.0, block_limit_s: float = BLOCK_LIMIT_S
    ) -> None:
        """Start the actors; those for which the cluster has room work at once, others when it has."""
        remote_actor: Any = ray.remote(num_cpus=1, num_gpus=gpus_per_actor, max_restarts=-1)(RolloutActor)
        self._actors = [remote_actor.remote(family, gpus_per_actor > 0) for _ in range(num_actors)]
        self._block_limit_s = block_limit_s
        self.peak_memory_gib = 0.0
        """Largest memory that an actor has held so far, of those that this copy of the pool has heard of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, blocks: Sequence[BlockT], shared: Any) -> Iterator[tuple[BlockT, Any]]:
        """Yield (block, result) as they finish; `shared` is published once.

        No more than `BLOCKS_IN_FLIGHT` results per actor wait to be taken, however slowly they are.

        Raises:
            RuntimeError: A block's actor died `BLOCK_ATTEMPTS` times, or no actor can be started. An actor that does
                not answer within the time limit of a block is killed, which counts as a death.
        """
        publication = [ray.put(shared)]
        waiting, attempts = deque(range(len(blocks))), Counter[int]()
        # An actor is given work once it has answered: one that still waits for a place in the cluster holds nobody up.
        starting = {member.ask(): member for member in map(_Member, self._actors)}
        working, alive = dict[Any, _Member](), list[_Member]()
        while waiting or working:
            # While others start, nobody takes a block to wait: it may be theirs.
            for ahead in range(1 if starting else BLOCKS_IN_FLIGHT):
                for member in alive:
                    if waiting and len(member.blocks) == ahead:
                        number = waiting.popleft()
                        answer = member.actor.run.remote(blocks[number], publication)
                        if not member.blocks:
                            member.since = time.monotonic()
                        member.blocks[answer], working[answer] = number, member
            if not starting and not working:
                raise RuntimeError(f"no rollout actor can be started: each died {START_ATTEMPTS} times while starting")
            answers, _ = ray.wait([*starting, *working], num_returns=1, timeout=self._patience(starting, working))
            if not answers:
                self._kill_overdue(working)
                starting = {answer: each for answer, each in starting.items() if _may_start(each)}
                continue
            answer = answers[0]
            if answer in starting:
                member = starting.pop(answer)
                if _has_started(answer):
                    alive.append(member)
                continue
            member = working.pop(answer)
            number = member.blocks.pop(answer)
            overdue, member.overdue, member.since = member.overdue, False, time.monotonic()
            try:
                result, memory_gib = ray.get(answer)
            except RayActorError as error:
                attempts[number] += 1
                if attempts[number] == BLOCK_ATTEMPTS:
                    raise RuntimeError(self._given_up(blocks[number], overdue)) from error
                # The blocks that waited behind it are not to blame.
                waiting.extendleft([*reversed(member.blocks.values()), number])
                working = {other: owner for other, owner in working.items() if owner is not member}
                member.blocks.clear()
                alive.remove(member)
                starting[member.ask()] = member
                continue
            except RayTaskError as error:
                raise error.cause from error
            self.peak_memory_gib = max(self.peak_memory_gib, memory_gib)
            yield blocks[number], result

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)

    def _patience(self, starting: dict[Any, _Member], working: dict[Any, _Member]) -> float:
        """Return the seconds until a running block is overdue, or until starting actors are looked at."""
        now = time.monotonic()
        left = [member.since + self._block_limit_s - now for member in working.values()]
        return max(0.0, min([*left, *[START_POLL_S] * bool(starting)]))

    def _kill_overdue(self, working: dict[Any, _Member]) -> None:
        """Kill the actors that have not answered in time; Ray starts them again, and their calls end in an error."""
        now = time.monotonic()
        for member in set(working.values()):
            if now - member.since >= self._block_limit_s:
                ray.kill(member.actor, no_restart=False)
                member.since, member.overdue = now, True

    def _given_up(self, block: Any, overdue: bool) -> str:
        reason = f"{block} ended its actor {BLOCK_ATTEMPTS} times"
        if not overdue:
            return reason
        return (
            f"{reason}: it was killed as the block took longer than {self._block_limit_s:g} s; "
            "if the block is only slow, raise cluster.block-limit-s"
        )


def _may_start(member: _Member) -> bool:
    """Return whether an actor that has not answered has died fewer times than `START_ATTEMPTS` while starting."""
    return _restarts(member.actor) - member.restarts < START_ATTEMPTS


def _restarts(actor: Any) -> int:
    """Return how often Ray has started an actor again."""
    number = actor._actor_id.hex()
    if ray.util.client.ray.is_connected():  # a driver behind ray:// does not know the cluster's state, its tasks do
        return int(ray.get(ray.remote(num_cpus=0)(_restarts_of).remote(number)))
    return _restarts_of(number)


def _restarts_of(number: str) -> int:
    return int(ray._private.state.actors(number).get("NumRestarts", 0))


def _has_started(answer: Any) -> bool:
    try:
        ray.get(answer)
    except RayActorError:
        return False
    return True
