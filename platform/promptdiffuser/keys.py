"""What identifies a result: a hash of the settings that decide it.

A field of a configuration that changes no number of the result, such as the updates between two checkpoints, is
declared with `metadata=NOT_DECIDING`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

NOT_DECIDING = {"decides_result": False}


def fingerprint(content: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def deciding(config: Any) -> Any:
    """Return a configuration as nested dictionaries, without the fields that do not decide a result."""
    if is_dataclass(config):
        decide = [field.name for field in fields(config) if field.metadata.get("decides_result", True)]
        return {name: deciding(getattr(config, name)) for name in decide}
    if isinstance(config, Mapping):
        return {key: deciding(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [deciding(value) for value in config]
    return config
