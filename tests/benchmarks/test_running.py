"""A run of the benchmarks says where it is, and an interrupted one keeps what it has."""

import json
from pathlib import Path

import pytest

from promptdiffuser.training import precision
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.entry import Value, cpu_formats


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said_before = []

    def first() -> list[Value]:
        said_before.append(capsys.readouterr().out)
        return [Value("first/figure", 1.0, "s", "a test")]

    def second() -> list[Value]:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    Path("bench.json").write_text(json.dumps({"of another run": {}}))
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"first": first, "second": second})
    with pytest.raises(KeyboardInterrupt):
        benchmarks.main([])
    assert said_before == ["first (1 of 2) ...\n"]
    assert capsys.readouterr().out == "first: 1 figures after 0 s\nsecond (2 of 2) ...\n"
    assert json.loads(Path("bench.json").read_text()).keys() == {"of another run", "first/figure"}


@pytest.mark.parametrize(("multiplies", "formats"), [(True, ("bf16", "fp32")), (False, ("fp32",))])
def test_bf16_is_measured_where_the_hardware_multiplies_it(
    multiplies: bool, formats: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for query in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(precision.torch.cpu, query, lambda: multiplies)
    assert cpu_formats() == formats
