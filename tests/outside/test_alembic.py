"""Alembic migrates through our pool, or without a pool where its env.py asks for none."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sqlspec.pool import AsyncFairQueuePool, FairQueuePool
from tests.outside.packages import need

need("asyncpg")
alembic = need("alembic.command")
config = need("alembic.config")

# template of Alembic, driver, our pool
TEMPLATES = [("generic", "psycopg2", FairQueuePool), ("async", "asyncpg", AsyncFairQueuePool)]
NO_POOL = "poolclass=pool.NullPool,"


@pytest.fixture
def migrations(plugin_url: Callable[[str], str], tmp_path: Path) -> Callable[..., Any]:
    """Let Alembic make a folder of migrations from its template, with the edits that its comments ask for."""

    def make(template: str, driver: str, *, poolclass: bool) -> Any:
        folder = tmp_path / "migrations"
        alembic.init(config.Config(tmp_path / "alembic.ini", stdout=io.StringIO()), str(folder), template)
        env = folder / "env.py"
        text = env.read_text("utf-8")
        assert text.count(NO_POOL) == 1
        if not poolclass:
            text = text.replace(NO_POOL, "")
        models = "from tests.outside.alembic_models import Base\n\ntarget_metadata = Base.metadata\n"
        env.write_text(text.replace("target_metadata = None\n", models), "utf-8")
        # without the .ini file, whose chapter on logging would silence the loggers of this process
        made = config.Config(output_buffer=io.StringIO())
        made.set_main_option("script_location", str(folder))
        made.set_main_option("sqlalchemy.url", plugin_url(driver).replace("%", "%%"))
        return made

    return make


def tables(url: str) -> set[str]:
    engine = sa.create_engine(url)
    try:
        return set(sa.inspect(engine).get_table_names())
    finally:
        engine.dispose()


@pytest.mark.parametrize("poolclass", [True, False], ids=["asks for NullPool", "asks for no pool"])
@pytest.mark.parametrize(("template", "driver", "ours"), TEMPLATES)
def test_alembic_upgrades_and_downgrades(
    template: str,
    driver: str,
    ours: type[sa.Pool],
    poolclass: bool,
    migrations: Callable[..., Any],
    plugin_url: Callable[[str], str],
    pools: set[type[sa.Pool]],
) -> None:
    settings = migrations(template, driver, poolclass=poolclass)
    alembic.revision(settings, "begin", autogenerate=True)
    alembic.upgrade(settings, "head")
    alembic.check(settings)
    assert pools == {sa.NullPool if poolclass else ours}
    assert tables(plugin_url("psycopg2")) == {"alembic_version", "author", "book"}
    alembic.downgrade(settings, "base")
    assert tables(plugin_url("psycopg2")) == {"alembic_version"}
    # its template disposes of no engine that is not asyncio's: dropping it is enough
    gc.collect()


def test_alembic_writes_sql_without_a_connection(migrations: Callable[..., Any], pools: set[type[sa.Pool]]) -> None:
    settings = migrations("generic", "psycopg2", poolclass=False)
    alembic.revision(settings, "begin")
    alembic.upgrade(settings, "head", sql=True)
    assert "CREATE TABLE alembic_version" in settings.output_buffer.getvalue()
    assert not pools
