"""The experiment object: it survives JSON, and refuses what cannot work by naming the field."""

import dataclasses
import json
from typing import Any

import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.recipes import BENCHMARKS, RECIPES, SWEEPS
from promptdiffuser.tasks import FAMILIES, get_family


def document_with(**changes: Any) -> dict[str, Any]:
    """Return a valid experiment as a document, with `a__b=value` set at a.b."""
    document: dict[str, Any] = json.loads(Experiment(name="some").to_json())
    for path, value in changes.items():
        *parents, name = path.split("__")
        inner = document
        for parent in parents:
            inner = inner[parent]
        assert name in inner, f"there is no {path} to change"
        inner[name] = value
    return document


def read(document: Any) -> Experiment:
    return Experiment.from_json(json.dumps(document))


def test_every_recipe_survives_json() -> None:
    experiments = {name: recipe() for name, recipe in RECIPES.items()}
    assert experiments.keys() == {"quickstart", *FAMILIES, *(f"{family}-large" for family in FAMILIES)}
    for family in FAMILIES:
        public, large = experiments[family], experiments[f"{family}-large"]
        assert public.family == large.family == family
        assert (public.backbone.width, public.backbone.layers, public.backbone.heads) == (128, 3, 1)
        assert (large.backbone.width, large.backbone.layers) == (512, 4)
    assert len({experiment.to_json() for experiment in experiments.values()}) == len(experiments)
    assert {name: experiment.name for name, experiment in experiments.items()} == {name: name for name in experiments}
    for experiment in [*experiments.values(), *(sweep().experiment for sweep in SWEEPS.values())]:
        restored = Experiment.from_json(experiment.to_json())
        assert restored == experiment
        assert restored.to_json() == experiment.to_json()
        assert isinstance(restored.methods, tuple)
        assert isinstance(restored.collection.qualities, tuple)
        # The public batch: 16 windows of every training task, at most 720 (45 tasks).
        if experiment.name in FAMILIES:
            assert experiment.pretraining.loss.batch_size == min(16 * len(get_family(experiment.name).train_tasks), 720)


def test_a_benchmark_is_one_experiment_a_seed_and_arm_on_equal_terms() -> None:
    for make in BENCHMARKS.values():
        benchmark = make()
        cells = list(benchmark.cells("cheetah-vel"))
        assert len(cells) == len(benchmark.arms) * 5
        for cell in cells:
            assert cell.experiment.seed == cell.experiment.evaluation.few_shot.draw == cell.seed > 0
            assert cell.experiment.evaluation.few_shot.episodes == cell.few_shot_episodes == 5
            # What is not the arm's or the seed's is the base's, the backbone above all.
            assert cell.experiment.backbone == benchmark.experiment.backbone
            assert Experiment.from_json(cell.experiment.to_json()) == cell.experiment
    ablation = BENCHMARKS["guidance-ablation"]().of_arms(["basis raw 5", "L_DM"])
    by_arm = {cell.arm: cell.experiment.guidance for cell in ablation.cells("cheetah-vel")}
    assert by_arm["L_DM"].weight == 0
    basis = by_arm["basis raw 5"]
    assert (basis.projection, basis.weight, basis.match_norms) == ("basis", 5.0, False)
    with pytest.raises(UserError, match="no arm 'L_DX'; its arms are 'L_DM'"):
        ablation.of_arms(["L_DX"])
    with pytest.raises(ValueError, match="seeds must be above 0, got 0"):
        dataclasses.replace(ablation, seeds=(0, 1))
    with pytest.raises(ValueError, match="seeds must name each value once"):
        dataclasses.replace(ablation, seeds=(1, 1))
    with pytest.raises(ValueError, match="reference_arm 'L_DM' is not among the arms"):
        ablation.of_arms(["basis raw 5"])


def test_changed_values_survive_json() -> None:
    document = document_with(seed=7, methods=["prompt-dt"], backbone__layers=2, diffuser__few_shot__steps=3)
    experiment = read(document)
    assert (experiment.seed, experiment.methods) == (7, ("prompt-dt",))
    assert (experiment.backbone.layers, experiment.diffuser.few_shot.steps) == (2, 3)
    assert json.loads(experiment.to_json()) == document


@pytest.mark.parametrize(
    ("parents", "path"),
    [
        ([], "experiment"),
        (["backbone"], "experiment.backbone"),
        (["pretraining", "loss"], "experiment.pretraining.loss"),
        (["diffuser", "multi_task"], "experiment.diffuser.multi_task"),
        (["cluster"], "experiment.cluster"),
    ],
)
def test_unknown_field_is_named_with_its_path(parents: list[str], path: str) -> None:
    document = inner = document_with()
    for parent in parents:
        inner = inner[parent]
    inner["layerz"] = 3
    with pytest.raises(UserError, match=rf"^{path} has no field 'layerz'; its fields are ") as refusal:
        read(document)
    assert all(name in str(refusal.value) for name in inner if name not in ("layerz", "schema_version"))


def test_a_missing_field_without_default_is_named() -> None:
    document = document_with()
    del document["name"]
    with pytest.raises(UserError, match="experiment lacks the field 'name'"):
        read(document)


@pytest.mark.parametrize("path", ["seed", "backbone", "diffuser.multi_task.clip_norm"])
def test_a_newer_field_takes_its_default_with_a_warning(path: str, caplog: pytest.LogCaptureFixture) -> None:
    document = inner = document_with()
    *parents, name = path.split(".")
    for parent in parents:
        inner = inner[parent]
    del inner[name]
    default = Experiment(name="some")
    found, expected = read(document), default
    for part in path.split("."):
        found, expected = getattr(found, part), getattr(expected, part)
    assert found == expected
    where = ".".join(["experiment", *parents])
    assert f"{where} lacks the field {name!r}, which takes its default" in caplog.text


def test_an_experiment_of_a_newer_version_is_refused() -> None:
    with pytest.raises(UserError, match="schema version 99, this version of promptdiffuser reads 1"):
        read(document_with() | {"schema_version": 99})
    unversioned = document_with()
    del unversioned["schema_version"]
    assert read(unversioned) == read(document_with())


IMPOSSIBLE = {
    "name": ["", "../elsewhere", "with space", ".hidden"],
    "family": ["cheetah-fly"],
    "methods": [[], ["prompt-guesser"], ["prompt-dt", "prompt-guesser"]],
    "collection__episodes_per_task": [0, -1],
    "collection__qualities": [[], ["expert", "expert"], ["expert", "superb"]],
    "quality": ["superb", "medium"],
    "backbone__width": [0, -128],
    "backbone__layers": [0],
    "backbone__heads": [0, 3],
    "backbone__history": [0, 201],
    "backbone__prompt_length": [0, 200],
    "backbone__attention": ["sparse"],
    "backbone__dropout": [-0.1, 1.0, float("nan")],
    "pretraining__loss__batch_size": [0],
    "pretraining__loss__precision": ["fp8"],
    "pretraining__optimisation__steps": [0],
    "pretraining__optimisation__learning_rate": [0.0, -1e-3, float("nan"), float("inf")],
    "pretraining__optimisation__schedule": ["zigzag"],
    "pretraining__optimisation__warmup_steps": [-1],
    "pretraining__optimisation__weight_decay": [-0.1],
    "pretraining__optimisation__clip_norm": [-1.0],
    "pretraining__optimisation__average_decay": [-0.1, 1.0],
    "pretraining__optimisation__checkpoint_every": [0],
    "pretraining__optimisation__keep_checkpoints": [0],
    "pretraining__optimisation__snapshot_every": [-1],
    "pretraining__optimisation__use": ["first", "best"],
    "pretraining__statistics": ["validation"],
    "pretraining__loss__accumulation": [0],
    "pretraining__loss__window_steps": [-1, 21],
    "rounds__env_steps": [0],
    "rounds__updates": [0],
    "validation__prompts": [0],
    "validation__episodes_per_prompt": [0],
    "diffusion__schedule": ["zigzag"],
    "diffusion__steps": [0, -5],
    "denoiser__hidden": [0],
    "denoiser__depth": [0],
    "denoiser__time_features": [0, 15],
    "denoiser__context_features": [0],
    "denoiser__context_hidden": [0],
    "guidance__weight": [-1.0, float("nan")],
    "guidance__projection": ["nope"],
    "guidance__weight_schedule": ["zigzag"],
    "guidance__losses": ["neither"],
    "guidance__project": ["moments"],
    "guidance__path": ["two-step"],
    "guidance__path_steps": [-1, 6],
    "guidance__energy": [0.0, 1.1, float("nan")],
    "guidance__memory_decay": [-0.1, 1.0, float("nan")],
    "guidance__batch_size": [0],
    "guidance__window_steps": [-1, 21],
    "guidance__precision": ["fp8"],
    "diffuser__batch_size": [0],
    "diffuser__guidance_start": [-1],
    "diffuser__denoising_steps": [-1],
    "diffuser__context_episodes": [0],
    "diffuser__context_transitions": [0],
    "diffuser__multi_task__steps": [0],
    "diffuser__few_shot__learning_rate": [0.0],
    "evaluation__prompts": [0],
    "evaluation__episodes_per_prompt": [0],
    "evaluation__few_shot__episodes": [0],
    "evaluation__prompt_use": ["never"],
    "evaluation__horizon": [-1],
    "evaluation__precision": ["fp8"],
    "evaluation__target_returns": [[1.0, 1.0]],
    "evaluation__few_shot__quality": ["superb", "medium"],
    "evaluation__few_shot__returns": ["best"],
    "evaluation__few_shot__draw": [-1],
    "diffuser__few_shot__snapshot_every": [10],
    "diffuser__held_out_episodes": [-1],
    "guidance__accumulation": [0],
    "adaptation__soft_prompt__initial": ["zeros"],
    "adaptation__adapters__bottleneck": [0],
    "adaptation__lora__rank": [0],
    "adaptation__lora__alpha": [0.0],
    "adaptation__fine_tuning__steps": [0],
    "adaptation__prompt_tuning_dt__perturbations": [1],
    "adaptation__prompt_tuning_dt__top": [16],
    "adaptation__prompt_tuning_dt__smoothing": [0.0, float("nan")],
    "adaptation__prompt_tuning_dt__momentum": [1.0],
    "adaptation__prompt_tuning_dt__batch_steps": [0],
    "adaptation__prompt_tuning_dt_online__episodes": [0],
    "adaptation__prompt_tuning_dt_online__searches": [-1],
    "adaptation__prompt_bandit__episodes": [0],
    "adaptation__prompt_bandit__features": ["pixels"],
    "adaptation__prompt_bandit__confidence": [-1.0],
    "cluster__train_workers": [0],
    "cluster__max_train_workers": [-1],
    "cluster__cpus_per_worker": [0],
    "cluster__gpus_per_worker": [-1.0, 1.5],
    "cluster__gpus_per_actor": [-0.5, 2.5],
    "cluster__data": ["remote"],
    "cluster__rollout_actors": [0],
    "cluster__local_cpus": [0],
}
WRONG_TYPES = {
    "name": 3,
    "seed": "zero",
    "methods": "prompt-dt",
    "quality": 3,
    "collection__qualities": "expert",
    "backbone": 3,
    "backbone__layers": 2.5,
    "evaluation__prompts": "ten",
    "pretraining__optimisation__steps": None,
    "guidance__match_norms": "no",
}


def assert_refused(path: str, value: Any) -> None:
    with pytest.raises(UserError) as refusal:
        read(document_with(**{path: value}))
    *parents, name = path.split("__")
    message = str(refusal.value)
    assert name in message, message
    for parent in parents:
        assert parent in message, message


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in IMPOSSIBLE.items() for value in values])
def test_impossible_value_is_refused_by_name(path: str, value: Any) -> None:
    assert_refused(path, value)


@pytest.mark.parametrize("path", WRONG_TYPES)
def test_value_of_another_type_is_refused_by_name(path: str) -> None:
    assert_refused(path, WRONG_TYPES[path])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"backbone__width": 100, "backbone__heads": 8}, ["backbone.heads", "backbone.width", "100"]),
        ({"backbone__history": 300}, ["backbone.history", "300", "200"]),
        ({"evaluation__horizon": 201}, ["evaluation.horizon", "201", "200"]),
        (
            {"adaptation__prompt_bandit__slots": 2},
            ["adaptation.prompt_bandit.slots", "backbone.prompt_length", "2", "5"],
        ),
        ({"backbone__prompt_length": 250}, ["backbone.prompt_length", "250", "200"]),
        (
            {"collection__episodes_per_task": 3, "evaluation__few_shot__episodes": 4},
            ["evaluation.few_shot.episodes", "collection.episodes_per_task"],
        ),
        (
            {"diffuser__guidance_start": 11, "diffuser__multi_task__steps": 10},
            ["diffuser.guidance_start", "diffuser.multi_task.steps", "11", "10"],
        ),
        ({"diffusion__schedule": "linear", "diffusion__steps": 1}, ["diffusion.schedule", "diffusion.steps"]),
        ({"guidance__initial_weight": 1.0}, ["guidance.initial_weight", "guidance.weight_schedule"]),
        ({"guidance__losses": "alternating"}, ["guidance.losses", "guidance.projection"]),
        (
            {"guidance__losses": "downstream", "guidance__projection": "sum"},
            ["guidance.losses", "guidance.match_norms"],
        ),
        ({"guidance__path": "one-step", "guidance__path_steps": 1}, ["guidance.path_steps", "guidance.path"]),
        ({"diffuser__held_out_episodes": 1}, ["diffuser.held_out_episodes", "diffuser.few_shot.use"]),
        (
            {
                "diffuser__held_out_episodes": 5,
                "diffuser__few_shot__snapshot_every": 5,
                "diffuser__few_shot__use": "best",
            },
            ["diffuser.held_out_episodes", "evaluation.few_shot.episodes", "5"],
        ),
        (
            {"guidance__path_steps": 4, "diffusion__sampling_steps": 3},
            ["guidance.path_steps", "4", "3", "diffusion.sampling_steps"],
        ),
        ({"quality": "medium"}, ["quality", "medium", "collection.qualities", "expert"]),
        (
            {"collection__qualities": ["mixed", "random"], "quality": "mixed"},
            ["evaluation.few_shot.quality", "expert", "collection.qualities", "mixed, random"],
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused_by_both_names(changes: dict, names: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        read(document_with(**changes))
    assert all(name in str(refusal.value) for name in names), str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone__history": 200, "backbone__prompt_length": 199},
        {"collection__episodes_per_task": 5, "evaluation__few_shot__episodes": 5},
        {"collection__qualities": ["mixed", "medium"], "quality": "mixed", "evaluation__few_shot__quality": "medium"},
        {"diffuser__guidance_start": 10, "diffuser__multi_task__steps": 10},
        {"guidance__weight": 0.0},
        {"guidance__path_steps": 5, "diffusion__steps": 5},
        {
            "diffuser__held_out_episodes": 4,
            "diffuser__few_shot__snapshot_every": 5,
            "diffuser__few_shot__use": "best",
        },
        {"pretraining__optimisation__clip_norm": 0.0, "pretraining__optimisation__average_decay": 0.0},
        {"diffusion__steps": 1},
    ],
)
def test_values_at_their_limits_are_accepted(changes: dict) -> None:
    read(document_with(**changes))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"quickstart"'])
def test_text_that_is_no_experiment_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="experiment"):
        Experiment.from_json(text)
