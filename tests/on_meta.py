"""Running a computation on torch's `meta` device, to check without a GPU that all of its tensors are on one device.

`meta` holds shapes and no data. An operation on a `meta` and a CPU tensor raises, as it would on a GPU. What waits for
a GPU's data, such as `.item()`, would raise too; here it gets ones and the computation goes on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.to)
VALUES = torch.ops.aten._local_scalar_dense.default


class OneDevice(TorchDispatchMode):
    """Lets no operation mix devices, not even by an index, which `meta` itself would let pass."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_on_meta = any(tensor.device == META for tensor in tensors)
        if operation is VALUES and is_on_meta:
            return {torch.bool: True, torch.int64: 1}.get(tensors[0].dtype, 1.0)
        if operation.overloadpacket in COPIES:
            target = kwargs.get("device") or tensors[0].device
            if is_on_meta and torch.device(target).type == "cpu":
                return torch.ones(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        elif is_on_meta:
            # A number without axes may be on the CPU, on a GPU as well.
            apart = [tensor for tensor in tensors if tensor.device != META and tensor.ndim]
            assert not apart, f"{operation} meets tensors of shapes {[tuple(t.shape) for t in apart]} on the CPU"
        return operation(*args, **kwargs)


@contextmanager
def on_meta() -> Iterator[None]:
    """Let the body compute on `meta`: what torch and safetensors lack for that device is replaced."""

    def load(path: Any, device: str) -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in load_file(path, device="cpu").items()}

    autocast = torch.autocast
    with (
        mock.patch("promptdiffuser.training.checkpoint.load_file", load),
        mock.patch(
            "torch.autocast", lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k)
        ),
        mock.patch("torch.optim.AdamW", lambda *a, fused, **k: partial(torch.optim.Adam, foreach=True)(*a, **k)),
        mock.patch("torch.fx.experimental._config.meta_nonzero_assume_all_nonzero", new=True),
        OneDevice(),
    ):
        yield
