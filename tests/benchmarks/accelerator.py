"""Pre-training on whatever device there is: tokens a second, memory, and the share of the device's arithmetic in use.

On a CPU the same script runs with small batches. Utilisation is against what one large matrix product reaches on the
same device in the same number format, measured in the same run.
"""

import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import Engine, OptimisationConfig, identity_reduce
from promptdiffuser.training.precision import PRECISIONS, best_precision
from promptdiffuser.training.trainings import BackboneTraining, make_resident
from tests.benchmarks.entry import Value

COMMAND = "python -m tests.benchmarks accelerator"
FAMILY = get_family("cheetah-vel")
SIZES = {
    "128x3": BackboneConfig(dropout=0.0),
    "512x4": BackboneConfig(width=512, layers=4, heads=8, dropout=0.0),
}
BATCHES = {"cuda": (256, 1024, 4096, 16384), "cpu": (64, 256)}
PRODUCT = {"cuda": 8192, "cpu": 2048}
UPDATES = {"cuda": 20, "cpu": 3}


def run() -> list[Value]:
    """Sweep the batch for both published sizes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = _product_rate(device)
    name = f"accelerator/{device.type}"
    entries = [Value(f"{name}/product-{best_precision(device)}", peak / 1e12, "TFLOP/s", COMMAND)]
    for size, config in SIZES.items():
        for batch in BATCHES[device.type]:
            prefix, engine = f"{name}/{size}/batch-{batch}", _engine(config, batch, device)
            with FlopCounterMode(display=False) as counter:
                engine.advance()
            _reset_memory(device)
            seconds = _seconds(engine.advance, UPDATES[device.type], device)
            tokens = 3 * (config.history + config.prompt_length) * batch
            utilisation = counter.get_total_flops() / seconds / peak
            entries += [
                Value(f"{prefix}/tokens", tokens / seconds, "tokens/s", COMMAND),
                Value(f"{prefix}/utilisation", utilisation, "of the product's rate", COMMAND),
                Value(f"{prefix}/memory", _memory(device) / 2**30, "GiB", COMMAND),
            ]
    return entries


def _engine(config: BackboneConfig, batch: int, device: torch.device) -> Engine:
    # What the numbers are does not matter to how fast they are multiplied.
    rng, count, steps = np.random.default_rng(0), 4 * len(FAMILY.train_tasks), FAMILY.horizon
    episodes = Episodes(
        tasks=np.repeat(FAMILY.train_tasks, 4),
        seeds=np.arange(count),
        lengths=np.full(count, steps),
        successes=np.zeros(count, bool),
        observations=rng.normal(size=(count, steps, FAMILY.observation_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (count, steps, FAMILY.action_dim)).astype(np.float32),
        rewards=rng.normal(size=(count, steps)).astype(np.float32),
    )
    training = BackboneTraining(
        family=FAMILY.name,
        seed=0,
        backbone=config,
        loss=BackboneLossConfig(batch),
        optimisation=OptimisationConfig(),
        statistics=Normaliser.fit([episodes], FAMILY.return_scale).tensors(),
        dataset_digest="random numbers",
    )
    task = training.learning_task(*make_resident(training, episodes, device), device)
    return Engine(task, training.optimisation, identity_reduce)


def _product_rate(device: torch.device) -> float:
    size, dtype = PRODUCT[device.type], PRECISIONS[best_precision(device)]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: left @ right, 10, device)


def _seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    work()
    _synchronise(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    _synchronise(device)
    return (time.perf_counter() - started) / repeats


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _memory(device: torch.device) -> int:
    """Return the peak in bytes: of the GPU since the reset, or of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
