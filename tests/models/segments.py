"""Made-up episodes in the networks' units, float64."""

import torch

from promptdiffuser.data.windows import Segments

STATE_DIM, ACTION_DIM = 5, 2


def segments(rows: int, steps: int, seed: int) -> Segments:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(rows, steps, *shape, generator=generator, dtype=torch.float64)

    return Segments(
        returns_to_go=normal(),
        states=normal(STATE_DIM),
        actions=normal(ACTION_DIM).tanh(),
        rewards=normal(),
        timesteps=torch.arange(steps).expand(rows, steps),
        valid=torch.ones(rows, steps, dtype=torch.bool),
    )
