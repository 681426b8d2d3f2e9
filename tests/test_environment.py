"""Registries from the environment and from files."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from sqlspec import ConfigError, EnvironmentConfig, SQLSpec, SQLSpecWarning
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
        ('primary = "postgresql://u:hidden@h/d"', r"line 1, \[primary\]: a database is a table"),
        ('[a]\nscheme = ["x"]', r"line 2, \[a\]: scheme must be a string"),
        ("[a]\nurl = 5", r"line 2, \[a\]: url must be a string"),
        ('[a]\nscheme = "mysql"\ndatabase = "d"', r"line 1, \[a\]: MySQLConfig names no server"),
        ('\n\n[a]\nurl = "postgresql+pg8000://h/d"', r"line 3, .*names the driver pg8000"),
        ('[a]\nurl = "sqlite:///x"\nscheme = "mysql"', r"line 3, \[a\]: the scheme of the url is another"),
        ('["my db"]\nurl = "sqlite:///x"\npool_size = 0', r"line 3, \[my db\].*pool_size"),
        ('a.url = "sqlite:///x"\na.pool_size = -1', r"line 2, \[a\].*pool_size"),
        ('a = {url = "sqlite:///x", pool_size = -1}', r"line 1, \[a\].*pool_size"),
        ('[a]\nurl = """\\\n  pool_size = 3"""\n\npool_size = 0', r"line 2, \[a\]"),
        ('[a]\nurl = "sqlite:///x"\n[a.instrumentation]\npool_name = " "', r"line 3, \[a\].*pool_name: must be"),
        ('[""]\nurl = "sqlite:///x"', r"line 1, .*must not be empty"),
        ("[[a]]", r"line 1, \[a\]: a database is a table"),
        ("", "describes no database"),
    ],
)
def test_errors_of_a_file_name_the_line_and_no_secret(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sqlspec.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        SQLSpec.from_toml(path)
    assert "hidden" not in str(caught.value)
    assert "hidden" not in locals_of(caught.value)


@pytest.mark.parametrize("text", ['tool = "x"', '[tool]\nsqlspec = "x"', "[[tool.sqlspec]]", "[tool.poetry]"])
def test_a_pyproject_without_our_tables_is_told_what_to_write(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"write a table such as \[tool.sqlspec.primary\]"):
        SQLSpec.from_toml(tmp_path / "pyproject.toml")


def locals_of(error: BaseException) -> str:
    """Return what a traceback that shows locals would show of the library's own frames."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
    own = [str(frame.locals) for frame in frames if "test_environment" not in frame.filename]
    assert own
    assert error.__context__ is None
    return " ".join(own)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HOST": "h", "POOL_SIZE": "-1"}, "APP_POOL_SIZE: Input should be greater"),
        ({"HOST": "h", "PORT": "0"}, "APP_PORT: "),
        ({"HOST": "h", "CONNECT_TIMEOUT": "nan"}, "APP_CONNECT_TIMEOUT: "),
        ({"HOST": "h", "POOL_RESET_ON_RETURN": "bogus"}, "APP_POOL_RESET_ON_RETURN: "),
        ({"HOST": "h", "TLS": "maybe"}, "APP_TLS: "),
        ({"URL": "postgresql://u:hidden@h/d", "HOST": "h"}, r"APP_\*: .*host is given twice"),
        ({"URL": "postgresql://u:hidden@h/d", "POOL_SIZE": "-1"}, "APP_POOL_SIZE: "),
        ({"URL": "sqlite:///x", "SCHEME": "mysql"}, "APP_SCHEME: the scheme of the url is another"),
        ({"SCHEME": "mysql", "NAME": "d"}, r"APP_\*: MySQLConfig names no server"),
        ({"SCHEME": "oracle", "HOST": "h"}, "APP_SCHEME: there is no adapter"),
        ({"HOST": "h", "PASSWORD_FILE": "/nowhere"}, "APP_PASSWORD_FILE: /nowhere: No such file"),
        ({"HOST": "h", "PASSWORD": "hidden", "PASSWORD_FILE": "/nowhere"}, "APP_PASSWORD_FILE: APP_PASSWORD is set"),
    ],
)
def test_errors_of_the_environment_name_the_variable_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"APP_{name}", value)
    with pytest.raises(ConfigError, match=message) as caught:
        EnvironmentConfig.from_env("APP_")
    assert "hidden" not in str(caught.value) + locals_of(caught.value)


def test_every_option_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HOST": "h",
        "TLS": "verify-full",
        "TLS_CA": "/ca.pem",
        "POOL_USE_LIFO": "1",
        "POOL_RESET_ON_RETURN": "discard",
        "APPLICATION_NAME": "shop",
        "JIT": "off",
        "COMMAND_TIMEOUT": "1.5",
    }.items():
        monkeypatch.setenv(f"APP_{name}", value)
    config = EnvironmentConfig.from_env("APP_")
    assert isinstance(config, PostgreSQLConfig)
    assert (config.tls, config.tls_ca, config.pool_use_lifo, config.jit) == ("verify-full", "/ca.pem", True, False)
    assert (config.pool_reset_on_return, config.application_name, config.command_timeout) == ("discard", "shop", 1.5)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("USERNAME", "USER"), ("DATABASE", "NAME"), ("POOL_SISE", "POOL_SIZE"), ("PASSWD", "PASSWORD")],
)
def test_a_variable_that_is_not_read_and_looks_like_one_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv("APP_HOST", "h")
    monkeypatch.setenv(f"APP_{variable}", "x")
    with pytest.warns(SQLSpecWarning, match=f"APP_{variable} is not read: did you mean APP_{meant}") as caught:
        EnvironmentConfig.from_env("APP_")
    assert caught[0].filename == __file__


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        SQLSpec.from_toml(tmp_path / "none.toml")
