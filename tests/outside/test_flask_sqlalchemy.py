"""A Flask-SQLAlchemy application on our pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sqlspec import PoolTimeout
from sqlspec.pool import FairQueuePool
from tests.outside.packages import need

shop = need("tests.outside.flask_shop")


def engines_of(app: Any) -> list[Any]:
    with app.app_context():
        return list(shop.db.engines.values())


@pytest.fixture
def create_app(plugin_url: Callable[[str], str]) -> Iterator[Callable[..., Any]]:
    """Make the application; at the end nothing of it is checked out."""
    apps: list[Any] = []

    def create(**options: Any) -> Any:
        url = plugin_url("psycopg2")
        apps.append(shop.create_app(url, f"{url}&sqlspec_max_waiters=50", **options))
        return apps[-1]

    yield create
    engines = [engine for app in apps for engine in engines_of(app)]
    left = [engine.pool.stats().checked_out for engine in engines]
    for engine in engines:
        engine.dispose()
    assert left == [0] * len(engines)


@pytest.fixture
def app(create_app: Callable[..., Any]) -> Any:
    """The application on two connections for each of its databases."""
    return create_app(pool_size=2, max_overflow=0)


def test_every_bind_of_a_flask_application_has_our_pool_with_the_options_of_its_url(app: Any) -> None:
    pools = [engine.pool for engine in engines_of(app)]
    assert [type(pool) for pool in pools] == [FairQueuePool, FairQueuePool]
    assert {pool.size() for pool in pools} == {2}
    assert sorted(str(pool._max_waiters) for pool in pools) == ["50", "None"]


def test_more_threads_than_connections_sell_exactly_what_there_is(app: Any) -> None:
    number = app.test_client().post("/articles", json={"name": "lamp", "stock": 30}).json["id"]

    def buy(customer: int) -> list[int]:
        client = app.test_client()
        order = {"customer": f"customer {customer}"}
        return [client.post(f"/articles/{number}/orders", json=order).status_code for _ in range(5)]

    with ThreadPoolExecutor(8) as executor:
        answers = Counter(code for codes in executor.map(buy, range(8)) for code in codes)
    assert answers == {201: 30, 409: 10}
    article = app.test_client().get(f"/articles/{number}").json
    assert (article["stock"], len(article["customers"])) == (0, 30)
    for engine in engines_of(app):
        stats = engine.pool.stats()
        assert stats.total <= 2
        assert not stats.timeouts


def test_requests_page_through_what_others_added(app: Any) -> None:
    client = app.test_client()
    for name in ("chair", "bed", "table"):
        client.post("/articles", json={"name": name, "stock": 1})
    assert client.get("/articles").json == {"articles": ["bed", "chair"], "pages": 2}
    assert client.get("/articles?page=2").json["articles"] == ["table"]
    assert client.get("/articles/99").status_code == 404


def test_a_request_that_fails_leaves_nothing_behind(app: Any) -> None:
    client = app.test_client()
    number = client.post("/articles", json={"name": "vase", "stock": 1}).json["id"]
    for _ in range(5):
        assert client.post(f"/articles/{number}/recount").status_code == 500
        assert client.post("/articles", json={"name": "vase", "stock": 2}).status_code == 500
    assert client.get(f"/articles/{number}").json["stock"] == 1


def test_a_request_that_finds_no_connection_is_told_who_holds_them(create_app: Callable[..., Any]) -> None:
    app = create_app(pool_size=1, max_overflow=0, pool_timeout=1)
    app.testing = True
    with app.app_context(), ThreadPoolExecutor(1) as executor:
        shop.db.session.scalars(shop.db.select(shop.Article)).all()
        with pytest.raises(PoolTimeout, match=r"test_flask_sqlalchemy\.py:\d+"):
            executor.submit(app.test_client().get, "/articles").result()
    assert app.test_client().get("/articles").status_code == 200
