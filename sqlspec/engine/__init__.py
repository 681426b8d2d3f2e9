"""The translation of a config into a SQLAlchemy engine, and what borrowers change on its connections."""

from sqlspec.engine.build import build_engine
from sqlspec.engine.listeners import SESSION_STATE, wanted_autocommit
from sqlspec.engine.transactions import adopt_transaction, borrow, discard

__all__ = ["SESSION_STATE", "adopt_transaction", "borrow", "build_engine", "discard", "wanted_autocommit"]
