"""Every method computes on the device that it is given."""

import dataclasses
from collections.abc import Callable

import pytest

from promptdiffuser.data.windows import PromptPool, ResidentEpisodes
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import AdaptationInputs, Method, TaskData
from tests.methods.test_adaptation_methods import tensors
from tests.on_meta import META, on_meta

MakeInputs = Callable[..., AdaptationInputs]


def moved(data: TaskData) -> TaskData:
    pool, windows = data.pool, data.windows
    fields = {field.name: getattr(windows, field.name).to(META) for field in dataclasses.fields(ResidentEpisodes)}
    return TaskData(
        PromptPool(pool.index, pool.prompts.to(META), pool.transitions.to(META)), ResidentEpisodes(**fields)
    )


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_computes_on_its_device(method: Method, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(method)
    inputs = dataclasses.replace(
        inputs,
        backbone=inputs.backbone.to(META),
        read_few_shot=lambda read=inputs.read_few_shot: moved(read()),
        few_shot_of=lambda quality, read=inputs.few_shot_of: moved(read(quality)),
        training=lambda read=inputs.training: moved(read()),
        whole_task=lambda read=inputs.whole_task: moved(read()),
    )
    with on_meta():
        policy = method.adapt(inputs).policy
    assert {tensor.device for tensor in tensors(policy.prompts).values()} == {META}
    assert {tensor.device for tensor in policy.backbone.state_dict().values()} == {META}
