"""Registries: their order, what they refuse, and the name they suggest."""

import pytest

from promptdiffuser.diffusion.predictions import PREDICTIONS
from promptdiffuser.diffusion.samplers import SAMPLERS
from promptdiffuser.diffusion.schedules import SCHEDULES
from promptdiffuser.errors import UserError
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import Method, register
from promptdiffuser.methods.backbones import BACKBONES
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.models.denoiser import ARCHITECTURES
from promptdiffuser.registry import Registry, suggest
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.training.guidance import WEIGHT_SCHEDULES
from promptdiffuser.training.projection import PROJECTIONS

REGISTRIES = {
    registry.kind: registry
    for registry in (
        *(METHODS, FAMILIES, BACKBONES, DIFFUSERS, ARCHITECTURES),
        *(SCHEDULES, SAMPLERS, PREDICTIONS, PROJECTIONS, WEIGHT_SCHEDULES),
    )
}


@pytest.fixture
def letters() -> Registry[str]:
    return Registry("letter", {"beta": "b", "gamma": "c"})


def test_items_keep_the_order_of_their_registration_within_their_place(letters: Registry[str]) -> None:
    letters.add("zeta", "z")
    letters.add("alpha", "a", place=10)
    letters.add("another", "a", place=10)
    assert list(letters) == ["alpha", "another", "beta", "gamma", "zeta"]
    assert letters["alpha"] == letters.find("another") == "a"
    assert len(letters) == 5


def test_a_decorator_registers_what_it_returns(letters: Registry[str]) -> None:
    assert letters.register("delta")("d") == letters["delta"] == "d"


def test_a_second_one_of_a_name_is_refused(letters: Registry[str]) -> None:
    with pytest.raises(UserError, match="there is a letter 'beta' already; give the second one another name"):
        letters.add("beta", "B")
    assert letters["beta"] == "b"


def test_a_sealed_registry_accepts_nothing(letters: Registry[str]) -> None:
    letters.seal("the alphabet is printed")
    with pytest.raises(UserError, match="letter 'delta' is registered too late: the alphabet is printed"):
        letters.add("delta", "d")
    assert "delta" not in letters


def test_a_method_that_comes_after_the_experiment_is_refused() -> None:
    import promptdiffuser.experiment  # noqa: F401

    with pytest.raises(UserError, match=r"method 'late' is registered too late: promptdiffuser\.experiment has been"):
        register(Method("late", METHODS["prompt-dt"].adapt, "a method"))


@pytest.mark.parametrize("kind", REGISTRIES)
def test_an_unknown_name_gets_the_nearest_one_and_all(kind: str) -> None:
    registry = REGISTRIES[kind]
    names = list(registry)
    assert len(set(names)) == len(names)
    mistyped = f"{names[0]}x"
    with pytest.raises(UserError) as refusal:
        registry.find(mistyped)
    near = f"unknown {kind} {mistyped!r}; did you mean {names[0]!r}? known: {', '.join(names)}"
    assert str(refusal.value) == near
    assert suggest("~", registry) == f"known: {', '.join(names)}"
