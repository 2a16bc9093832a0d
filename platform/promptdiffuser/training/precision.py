"""Which number format the matrix products of a training step use."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""auto is the best that the hardware has. fp16 is for GPUs that lack bf16; its losses are scaled, see `loss_scales`."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_precision(device: torch.device) -> str:
    """Return bf16 where the hardware multiplies it faster than fp32, else fp32.

    On CPUs that is AMX or AVX512-BF16; torch has no public query for it.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    fast_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and fast_bf16 else "fp32"


def check_precision(field: str, precision: str) -> None:
    """Raise a ValueError that names the field if the precision is unknown."""
    if precision != "auto" and precision not in PRECISIONS:
        raise ValueError(f"{field} must be auto, {', '.join(PRECISIONS)}, got {precision!r}")


def number_format(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format that a precision means on a device."""
    return PRECISIONS[best_precision(device) if precision == "auto" else precision]


def resolve_precisions(settings: Any, device: torch.device) -> Any:
    """Return nested settings in which every `precision` that is auto is replaced by what it becomes on a device.

    A driver without a GPU cannot know what auto becomes on its workers' GPUs, so there it is `auto on cuda`.
    """
    if not isinstance(settings, Mapping):
        return settings
    unknown = device.type == "cuda" and not torch.cuda.is_available()
    best = f"auto on {device.type}" if unknown else best_precision(device)
    return {
        key: best if (key, value) == ("precision", "auto") else resolve_precisions(value, device)
        for key, value in settings.items()
    }


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which a forward pass runs at a precision."""
    dtype = number_format(precision, device)
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    return context


def loss_scales(precision: str) -> tuple[float, ...]:
    """Return the factors to try on a loss before its gradient is taken, largest first.

    Gradients of a mean over many actions are below fp16's smallest number (6e-8), so the loss is multiplied by 2^16 and
    the gradient divided by it. Where that overflows, a smaller factor is tried on the same batch. The usual scaler
    skips the batch and remembers the factor; here every update happens and depends on nothing but its address.
    """
    return tuple(2.0**power for power in (16, 12, 8, 4, 0)) if precision == "fp16" else (1.0,)
