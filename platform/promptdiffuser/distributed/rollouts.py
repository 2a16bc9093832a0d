"""A pool of rollout actors that survives the death of its members.

Ray's own ActorPool drops a dead actor and raises; here Ray restarts the actor and the pool runs the lost block again.
Blocks are addressed by seed, so a block that ran twice gives the same result twice.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from promptdiffuser.evaluation.stepping import EpisodeStepper
from promptdiffuser.tasks import get_family

ACTOR_RESTARTS = 3
BLOCK_ATTEMPTS = 3
BLOCKS_IN_FLIGHT = 2
"""Blocks handed to an actor at a time: one runs, one waits, so that no actor idles between two."""

Result = TypeVar("Result", covariant=True)


class Block(Protocol[Result]):
    """A fixed piece of rollout work."""

    def run(self, stepper: EpisodeStepper, shared: Any, /) -> Result:
        """Run it; the same block gives the same result on any actor."""


class RolloutActor:
    """Owns simulators of one family and runs blocks on one core."""

    def __init__(self, family: str) -> None:
        torch.set_num_threads(1)
        self._stepper = EpisodeStepper(get_family(family))

    def run(self, block: Block[Any], shared: Any) -> Any:
        """Run a block with what was published to all actors."""
        return block.run(self._stepper, shared)


class RolloutPool:
    """Runs blocks on actors; may be handed to other Ray processes, which then share the actors."""

    def __init__(self, family: str, num_actors: int) -> None:
        """Start the actors."""
        remote_actor: Any = ray.remote(num_cpus=1, max_restarts=ACTOR_RESTARTS)(RolloutActor)
        self._actors = [remote_actor.remote(family) for _ in range(num_actors)]

    def run(self, blocks: Sequence[Block[Result]], shared: Any) -> Iterator[tuple[Block[Result], Result]]:
        """Yield (block, result) as they finish; `shared` is published once.

        Raises:
            RuntimeError: A block's actor died `BLOCK_ATTEMPTS` times.
        """
        reference = ray.put(shared)
        waiting, attempts = deque(range(len(blocks))), Counter[int]()
        free = deque(self._actors * BLOCKS_IN_FLIGHT)
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and free:
                number, actor = waiting.popleft(), free.popleft()
                running[actor.run.remote(blocks[number], reference)] = (number, actor)
            (finished,), _ = ray.wait(list(running), num_returns=1)
            number, actor = running.pop(finished)
            free.append(actor)
            try:
                result = ray.get(finished)
            except RayActorError as error:
                attempts[number] += 1
                if attempts[number] == BLOCK_ATTEMPTS:
                    raise RuntimeError(f"{blocks[number]} ended its actor {BLOCK_ATTEMPTS} times") from error
                waiting.append(number)
                continue
            except RayTaskError as error:
                raise error.cause from error
            yield blocks[number], result

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
