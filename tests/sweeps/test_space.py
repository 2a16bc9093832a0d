"""Search spaces: what they hold, and that a wrong one is refused by name."""

import numpy as np
import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.sweeps.space import (
    Choices,
    Point,
    Range,
    Space,
    apply,
    change_space,
    check_space,
    draw,
    grid,
)

BASE = Experiment(name="some")


def test_a_point_changes_its_fields_and_nothing_else() -> None:
    changed = apply({"guidance.weight": 2, "diffuser.multi_task.learning_rate": 1e-3, "diffusion.steps": 8}, BASE)
    assert (changed.guidance.weight, changed.diffuser.multi_task.learning_rate, changed.diffusion.steps) == (
        2.0,
        1e-3,
        8,
    )
    assert (
        apply({"guidance.weight": 5.0, "diffuser.multi_task.learning_rate": 1e-4, "diffusion.steps": 5}, changed)
        == BASE
    )


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"guidance.wait": 1.0}, ("guidance.wait", "weight_schedule")),
        ({"guidence.weight": 1.0}, ("guidence.weight", "guidance")),
        ({"guidance.weight.deep": 1.0}, ("guidance.weight.deep",)),
        ({"evaluation.prompts": 3}, ("evaluation.prompts", "can be swept")),
        ({"guidance.weight": -1.0}, ("guidance.weight", "negative")),
        ({"guidance.weight": "much"}, ("guidance.weight", "much")),
        ({"diffusion.schedule": "wavy"}, ("wavy", "cosine")),
    ],
)
def test_a_wrong_point_is_refused_by_name(point: Point, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refusal:
        apply(point, BASE)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_fields_that_contradict_each_other_are_found_in_combination() -> None:
    space: Space = {"guidance.losses": Choices(("joint", "alternating")), "guidance.projection": Choices(("sum",))}
    check_space(space, BASE)
    with pytest.raises(UserError, match=r"guidance\.losses=alternating guidance\.projection=complement"):
        check_space(space | {"guidance.projection": Choices(("sum", "complement"))}, BASE)


def test_domains_hold_what_they_draw() -> None:
    generator = np.random.default_rng(0)
    space: Space = {"a": Range(1e-4, 1e-2, log=True), "b": Range(3, 5), "c": Choices(("x", "y")), "d": Range(-1.0, 1.0)}
    points = [draw(space, generator) for _ in range(2_000)]
    assert {point["b"] for point in points} == {3, 4, 5}
    assert {point["c"] for point in points} == {"x", "y"}
    # Half of a logarithmic range lies below its geometric mean.
    assert np.mean([float(point["a"]) < 1e-3 for point in points]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([float(point["d"]) < 0 for point in points]) == pytest.approx(0.5, abs=0.05)
    assert all(domain.holds(point[field]) for point in points for field, domain in space.items())


def test_a_command_line_adds_changes_and_drops_fields() -> None:
    space: Space = {"guidance.weight": Choices((1, 2)), "diffusion.schedule": Choices(("vp",))}
    for text, domain in {
        "guidance.weight=0,1.5,10": Choices((0, 1.5, 10)),
        "diffusion.schedule=vp,cosine": Choices(("vp", "cosine")),
        "diffusion.steps=3..12": Range(3, 12),
        "guidance.weight=log:0.1..20": Range(0.1, 20, log=True),
    }.items():
        field = text.partition("=")[0]
        assert change_space(space, [text]) == space | {field: domain}
        assert f"{field}={domain}" == text
    assert change_space(space, ["guidance.weight="]) == {"diffusion.schedule": Choices(("vp",))}
    assert change_space(space, ["guidance.weight=", "guidance.weight=5..9"])["guidance.weight"] == Range(5, 9)
    assert change_space(space, []) == space


@pytest.mark.parametrize(
    "wrong", ["guidance.weight", "=1", "guidance.weight=5..1", "guidance.weight=log:0..1", "a=b..c"]
)
def test_a_change_that_cannot_be_read_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match="is no field of a space"):
        change_space({"guidance.weight": Choices((1, 2))}, [wrong])


def test_a_field_that_is_not_there_cannot_be_dropped() -> None:
    with pytest.raises(UserError, match=r"diffusion\.steps=.*guidance\.weight"):
        change_space({"guidance.weight": Choices((1, 2))}, ["diffusion.steps="])


def test_a_grid_is_every_combination_and_has_no_ranges() -> None:
    points = list(grid({"a": Choices((1, 2)), "b": Choices(("x", "y", "z"))}))
    assert len(points) == 6
    assert points[1] == {"a": 1, "b": "y"}
    with pytest.raises(UserError, match="'b' is a range"):
        grid({"a": Choices((1, 2)), "b": Range(0.0, 1.0)})
