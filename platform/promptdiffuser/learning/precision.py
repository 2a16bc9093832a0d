"""Which number format the matrix products of a training step use."""

from contextlib import AbstractContextManager

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def best_precision(device: torch.device) -> str:
    """Return bf16 where the hardware multiplies it faster than fp32, else fp32.

    On CPUs that is AMX or AVX512-BF16 (6 to 7 times the fp32 rate on both); torch has no public query for it.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    fast_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and fast_bf16 else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which a forward pass runs at `precision`: fp32, bf16 or auto."""
    dtype = PRECISIONS[best_precision(device) if precision == "auto" else precision]
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    return context
