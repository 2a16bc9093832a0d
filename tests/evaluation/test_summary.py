"""Reading summary.json: of this version and whole, or refused with what makes it anew."""

import json
from typing import Any

import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.summary import SCHEMA_VERSION, EvaluationSummary, MethodSummary, read_summary

METHOD: dict[str, Any] = dict.fromkeys(MethodSummary.__required_keys__, 0.0)
SUMMARY: dict[str, Any] = dict.fromkeys(EvaluationSummary.__required_keys__, "") | {
    "schema_version": SCHEMA_VERSION,
    "methods": {"prompt-dt": METHOD},
}


def test_a_whole_summary_is_read() -> None:
    assert read_summary(json.dumps(SUMMARY)) == SUMMARY
    assert "mean" in MethodSummary.__required_keys__


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ("[1]", "is damaged"),
        (json.dumps(SUMMARY | {"schema_version": 99}), "has schema version 99, this version of promptdiffuser reads 1"),
        (json.dumps({k: v for k, v in SUMMARY.items() if k != "schema_version"}), "has schema version None"),
        (json.dumps({k: v for k, v in SUMMARY.items() if k != "references"}), "lacks 'references'"),
        (json.dumps(SUMMARY | {"methods": {"lora": {"mean": 1.0}}}), "lacks 'ci_high' of lora"),
    ],
)
def test_another_one_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        read_summary(text)
    assert "promptdiffuser stage evaluate EXPERIMENT" in str(refused.value)
