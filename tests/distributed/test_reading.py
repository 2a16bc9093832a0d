"""Reading a dataset through Ray Data gives its rows, its columns and its order."""

import numpy as np
import pytest

from promptdiffuser.data.store import Dataset
from promptdiffuser.distributed.datasets import read_files

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
# Not in the order of `files`, which is by task.
TASKS = (12, 0, 7)


@pytest.mark.parametrize("blocks", [0, 2, 100])
def test_rows_columns_and_order_are_those_of_the_files(small_dataset: Dataset, blocks: int) -> None:
    files = read_files(small_dataset, TASKS, "random", blocks)
    files.context.execution_options.preserve_order = True

    batches = list(files.iter_batches(batch_size=None, batch_format="numpy"))
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    episodes = small_dataset.read(TASKS, "random")
    expected = {
        "task": episodes.tasks,
        "episode": np.concatenate([np.arange((episodes.tasks == task).sum()) for task in sorted(TASKS)]),
        "seed": episodes.seeds,
        "length": episodes.lengths,
        "success": episodes.successes,
        "observations": episodes.observations,
        "actions": episodes.actions,
        "rewards": episodes.rewards,
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)
