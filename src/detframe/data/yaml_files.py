"""YAML files that a person wrote, and how they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from detframe.data.annotations import DataError


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - what YAML holds
    """What a file holds, None where it is empty.

    Raises:
        DataError: It cannot be read, or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path}: is no valid YAML ({' '.join(str(error).split())}). Correct it.") from error
