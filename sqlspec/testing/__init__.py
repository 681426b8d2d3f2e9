"""What applications need in their own tests: a database that breaks on command, and the proof that nothing leaks."""

from sqlspec.testing.driver import ScriptedDriver
from sqlspec.testing.leaks import assert_no_leaks

__all__ = ["ScriptedDriver", "assert_no_leaks"]
