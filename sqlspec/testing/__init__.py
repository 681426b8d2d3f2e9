"""What applications need in their tests: databases and networks that break on command, and the proof of no leaks."""

from sqlspec.testing.driver import ScriptedDriver
from sqlspec.testing.isolation import aisolated, isolated
from sqlspec.testing.leaks import assert_no_leaks
from sqlspec.testing.proxy import FaultProxy

__all__ = ["FaultProxy", "ScriptedDriver", "aisolated", "assert_no_leaks", "isolated"]
