"""What the pretrain job makes of an experiment: what a snapshot is scored by."""

from types import ModuleType

import pytest

from promptdiffuser.data.store import Dataset
from promptdiffuser.experiment import Experiment

EXPERIMENT = Experiment(name="some", quality="expert")


@pytest.fixture
def pretrain(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "jobs")
    import pretrain

    return pretrain


def test_snapshots_are_scored_with_what_the_evaluation_shows_of_a_task(
    pretrain: ModuleType, small_dataset: Dataset
) -> None:
    validation = pretrain.validation_of(small_dataset, EXPERIMENT, "prompt-dt")
    assert validation.protocol.few_shot == EXPERIMENT.evaluation.few_shot
    assert (validation.protocol.prompts, validation.protocol.episodes_per_prompt) == (5, 2)
    assert validation.backbone_folder is None
