"""The packages of the outside applications, which only the tox environment ``outside`` installs."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest

__all__ = ["need"]


def need(name: str) -> ModuleType:
    """Import a module; skip the tests of it where a package is missing, unless SQLSPEC_OUTSIDE=1 demands them all."""
    if os.environ.get("SQLSPEC_OUTSIDE") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)  # type: ignore[no-any-return]  # it declares Any
