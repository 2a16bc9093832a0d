"""Plugins: a method, a noise schedule and a task family from one file outside the package, as a user adds them."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods.backbones import backbone_config
from promptdiffuser.plugins import OPTION, VARIABLE, take_plugins
from promptdiffuser.training.model_folders import save_backbone
from tests import tiny
from tests.conftest import FAMILY
from tests.rollout.synthetic_policies import TINY, tiny_backbone

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = '''"""median-prompt: a quantile of the few-shot prompts, number by number; a schedule and a family."""

from dataclasses import dataclass, replace

import torch

from promptdiffuser.diffusion.schedules import SCHEDULES, vp
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.tasks import family
from promptdiffuser.tasks.families import cheetah_vel


@dataclass(frozen=True)
class MedianPromptConfig:
    """Settings of median-prompt."""

    quantile: float = 0.5
    """Quantile of every number of a prompt, from 0 to 1; 0.5 is the median."""

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile must be between 0 and 1, got {self.quantile}")


def adapt(inputs: AdaptationInputs) -> Adaptation:
    config: MedianPromptConfig = inputs.settings
    prompts = inputs.few_shot.pool.prompts
    median = replace(prompts.select(slice(1)), states=prompts.states.quantile(config.quantile, 0, keepdim=True))
    always = torch.zeros(inputs.num_prompts, dtype=torch.int64)
    return Adaptation(AdaptedPolicy(inputs.backbone, median.select(always)))


register(Method("median-prompt", adapt, "the median of the few-shot prompts", settings=MedianPromptConfig))


@SCHEDULES.register("vp-again")
def vp_again(num_steps: int) -> torch.Tensor:
    """The schedule vp under another name."""
    return vp(num_steps)


family.register(
    replace(
        cheetah_vel.FAMILY,
        name="cheetah-again",
        gymnasium_id="Median/CheetahAgain-v0",
        expert_of=cheetah_vel.FAMILY.name,
    )
)
'''
ADAPT = """
import json, sys
from pathlib import Path
import gymnasium, torch
from promptdiffuser.cli.main import COMMANDS, parse
from promptdiffuser.plugins import take_plugins

dataset_folder, *words = sys.argv[1:]
experiment = parse(COMMANDS["run"], "promptdiffuser run", take_plugins(words)).experiment

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import open_dataset
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import METHODS, get_method
from promptdiffuser.methods.config import settings_of
from promptdiffuser.methods.inputs import InputsBuilder, InputsSettings
from promptdiffuser.sweeps.space import apply
from promptdiffuser.tasks import FAMILIES
from tests.rollout.synthetic_policies import tiny_backbone

method, dataset = get_method("median-prompt"), open_dataset(dataset_folder)
normaliser = Normaliser.fit(dataset.parts(dataset.family.train_tasks), dataset.family.return_scale)
few_shot = experiment.evaluation.few_shot
settings = InputsSettings("expert", few_shot, 4, experiment.adaptation, 2, 0.0, seed=0)
inputs = InputsBuilder(dataset, tiny_backbone(dataset.family), normaliser, settings).inputs(method, 7, Path("unused"))
prompts = method.adapt(inputs).policy.prompts
environment = gymnasium.make("Median/CheetahAgain-v0", task=7)
print(json.dumps({
    "methods": list(METHODS),
    "own settings": inputs.settings == settings_of(experiment.adaptation, method),
    "lowest": torch.equal(prompts.states[1], inputs.few_shot.pool.prompts.states.amin(0)),
    "restored": Experiment.from_json(experiment.to_json()) == experiment,
    "swept": apply({"adaptation.median_prompt.quantile": 0.25}, experiment).adaptation.median_prompt.quantile,
    "schedule": experiment.diffusion.schedule,
    "label": method.label,
    "colour": method.colour,
    "environment": type(environment.unwrapped).__name__ + " " + list(FAMILIES)[-1],
    "experiment": experiment.to_json(),
}))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "elsewhere" / "median-prompt.py"
    file.parent.mkdir()
    file.write_text(PLUGIN)
    return file


def python(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = tiny.environment(folder) | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment | variables, capture_output=True, text=True
    )


def promptdiffuser(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-c", "from promptdiffuser.cli.main import main\nmain()", *arguments, **variables)


def test_a_method_of_one_file_has_options_settings_and_adapts(
    plugin: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    options = ["--methods", "prompt-dt", "median-prompt", "--adaptation.median-prompt.quantile", "0"]
    more = ["--diffusion.schedule", "vp-again", "--evaluation.few-shot.episodes", "3", OPTION, str(plugin)]
    done = python(tmp_path, "-c", ADAPT, str(small_dataset.location), "quickstart", *options, *more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["methods"][0], found["methods"][-1]) == ("prompt-dt", "median-prompt")
    assert found["own settings"]
    assert found["lowest"]
    assert found["restored"]
    assert found["swept"] == 0.25
    assert found["schedule"] == "vp-again"
    assert found["label"] == "median-prompt"
    assert len(found["colour"]) == 7
    assert found["environment"] == "CheetahVelEnv cheetah-again"

    saved = json.loads(found["experiment"])
    assert saved["adaptation"]["median_prompt"] == {"quantile": 0.0}
    saved["diffusion"]["schedule"] = "vp"
    with pytest.raises(UserError, match=r"adaptation has no field 'median_prompt'; .* need its --plugin"):
        Experiment.from_json(json.dumps(saved))


def test_a_changed_plugin_is_other_source(plugin: Path, tmp_path: Path) -> None:
    program = "from promptdiffuser.pipeline import session; print(session.source()['digest'])"
    digests = [python(tmp_path, "-c", program).stdout]
    for _ in range(2):
        digests.append(python(tmp_path, "-c", program, PROMPTDIFFUSER_PLUGINS=str(plugin)).stdout)
        plugin.write_text(plugin.read_text() + "# changed\n")
    assert len(set(digests)) == 3


def test_an_experiment_that_was_saved_without_a_plugin_runs_with_it(plugin: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    saved.write_text(Experiment(name="some").to_json())
    script = (
        "import sys; from promptdiffuser.experiment import Experiment; "
        "print(Experiment.from_json(open(sys.argv[1]).read()).adaptation.median_prompt.quantile)"
    )
    done = python(tmp_path, "-c", script, str(saved), **{VARIABLE: str(plugin)})
    assert (done.returncode, done.stdout) == (0, "0.5\n"), done.stderr


def test_help_shows_the_settings_of_a_plugin_and_its_recipes(plugin: Path, tmp_path: Path) -> None:
    shown = promptdiffuser(tmp_path, "run", "quickstart", OPTION, "elsewhere/median-prompt.py", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--adaptation.median-prompt.quantile" in shown.stdout
    assert "Settings of median-prompt." in shown.stdout
    shown = promptdiffuser(tmp_path, f"{OPTION}={plugin}", "run", "cheetah-again", "--help")
    assert shown.returncode == 0, shown.stderr


def test_an_installed_package_names_its_plugin_by_an_entry_point(plugin: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    about = installed / "median-1.0.dist-info"
    about.mkdir(parents=True)
    (installed / "median.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: median\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[promptdiffuser.plugins]\nmedian = median\n")
    script = "from promptdiffuser.methods import METHODS; print(METHODS['median-prompt'].settings.__module__)"
    done = python(tmp_path, "-c", script, PYTHONPATH=f"{ROOT / 'platform'}:{installed}")
    assert (done.returncode, done.stdout) == (0, "median\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "quickstart", "--methods", "median-prompt"],
            "methods names an unknown method 'median-prompt'; did you mean 'mean-prompt'? known: prompt-dt, ",
        ),
        (["run", "quickstart", OPTION], "--plugin needs the name of a module or the path of a .py file"),
        (["run", "quickstart", OPTION, "nowhere.py"], "plugin {folder}/nowhere.py is no file that this machine sees"),
        (["run", "quickstart", OPTION, "nowhere.at_all"], "plugin 'nowhere.at_all' cannot be found; install it, "),
        (["run", "quickstart", OPTION, "again.py"], "there is a method 'lora' already; give the second one another"),
        (
            ["run", "quickstart", OPTION, "section.py"],
            "method own has its settings in adaptation.lora, which holds those of another method",
        ),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    arguments: list[str], message: str, plugin: Path, tmp_path: Path
) -> None:
    start = "from promptdiffuser.methods.adaptation import METHODS, Method, register\n"
    start += "from promptdiffuser.methods.soft_prompt import SoftPromptConfig, adapt\n"
    (tmp_path / "again.py").write_text(f"{start}register(Method('lora', adapt, 'another'))\n")
    own = "Method('own', adapt, 'another', settings=SoftPromptConfig, section='lora')"
    (tmp_path / "section.py").write_text(f"{start}register({own})\n")
    done = promptdiffuser(tmp_path, *(word.format(plugin=plugin) for word in arguments))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: " + message.format(folder=tmp_path))


def test_the_option_may_stand_anywhere_and_is_taken_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "first")
    monkeypatch.chdir(tmp_path)
    words = [OPTION, "a.module", "run", "quickstart", f"{OPTION}=some.py", "--seed", "1", OPTION, "first"]
    assert take_plugins(words) == ["run", "quickstart", "--seed", "1"]
    assert os.environ[VARIABLE].split(os.pathsep) == ["first", "a.module", str(tmp_path / "some.py")]


@pytest.mark.ray
def test_workers_adapt_by_a_method_of_a_plugin(plugin: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    config = backbone_config("prompt-dt", TINY)
    normaliser = Normaliser.fit(small_dataset.parts(FAMILY.train_tasks), FAMILY.return_scale)
    document = {"family": FAMILY.name, "config": asdict(config)}
    save_backbone(tmp_path / "backbone", tiny_backbone(FAMILY, config=config).state_dict(), document, normaliser)
    done = promptdiffuser(
        tmp_path,
        *["stage", "adapt", "quickstart", OPTION, "elsewhere/median-prompt.py", "--methods", "median-prompt"],
        *["--adaptation.median-prompt.quantile", "0.25", "--evaluation.few-shot.episodes", "3"],
        *["--dataset", str(small_dataset.location), "--backbone-checkpoint", str(tmp_path / "backbone")],
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert folder.name.startswith("median-prompt-")
    policies = {path.parent.name for path in folder.glob("task-*/policy")}
    assert policies == {f"task-{task}" for task in FAMILY.test_tasks}
