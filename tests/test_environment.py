"""Registries from the environment and from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlspec import ConfigError, SQLSpec
from sqlspec.adapters import PostgreSQLConfig, SQLiteConfig


def test_a_registry_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DB_URL", f"sqlite:///{tmp_path / 'a.db'}")
    monkeypatch.setenv("REPORTS_HOST", "h")
    with SQLSpec.from_env() as spec, spec.get_session() as session:
        assert session.execute("SELECT 1").scalar() == 1
    with SQLSpec.from_env({"primary": "DB_", "reports": "REPORTS_"}) as spec:
        assert spec.list_configs() == ["primary", "reports"]
        assert isinstance(spec.get_config("reports"), PostgreSQLConfig)


def test_a_registry_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden\n")
    path = tmp_path / "sqlspec.toml"
    path.write_text(
        f"""
        [primary]
        url = "postgresql://app@db/app"
        password_file = "{tmp_path / "secret"}"
        pool_size = 20

        [cache]
        scheme = "sqlite"
        database = "{tmp_path / "cache.db"}"
        """
    )
    with SQLSpec.from_toml(path) as spec:
        primary = spec.get_config("primary")
        assert isinstance(primary, PostgreSQLConfig)
        assert (primary.pool_size, primary.reveal_password()) == (20, "hidden")
        assert isinstance(spec.get_config("cache"), SQLiteConfig)
        with spec.get_session("cache") as session:
            assert session.execute("SELECT 1").scalar() == 1


def test_in_pyproject_the_tables_stand_under_tool(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\nname = "x"\n\n[tool.sqlspec.primary]\nurl = "sqlite:///x.db"\npool_size = 2\n')
    with SQLSpec.from_toml(path) as spec:
        assert spec.list_configs() == ["primary"]
    path.write_text('[project]\nname = "x"\n')
    with pytest.raises(ConfigError, match=r"describes no database: write a table such as \[tool.sqlspec.primary\]"):
        SQLSpec.from_toml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[primary]\nurl = "postgresql://u:hidden@h/d', r"does not parse: .*at end of document"),
        ('[primary]\npool_size = = 2\nurl = "postgresql://u:hidden@h/d"', r"does not parse: .*line 2"),
        (
            '[a]\nurl = "sqlite:///a"\n[primary]\nurl = "postgresql://u:hidden@h/d"\npool_size = "many"',
            r"line 5, \[primary\].*pool_size",
        ),
        ('[primary]\nurl = "postgresql://u:hidden@h/d"\npool_sise = 2', r"line 3, .*did you mean pool_size"),
        ('[primary]\nurl = "oracle://u:hidden@h/d"', r"line 2, .*there is no adapter"),
        (
            '[primary]\nscheme = "mariadb"\npassword_file = "/nowhere/secret"',
            r"line 3, .*password_file: /nowhere/secret: No such file",
        ),
        ('primary = "postgresql://u:hidden@h/d"', r"a database is a table"),
        ("", "describes no database"),
    ],
)
def test_errors_of_a_file_name_the_line_and_no_secret(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sqlspec.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        SQLSpec.from_toml(path)
    assert "hidden" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        SQLSpec.from_toml(tmp_path / "none.toml")
