"""A shop on Flask-SQLAlchemy. It knows nothing of sqlspec: the URL in its settings does all."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Keep the tables of the shop."""


db = SQLAlchemy(model_class=Base)
shop = Blueprint("shop", __name__)


class Article(db.Model):
    """Be something that is sold while there is some."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    stock: Mapped[int]
    orders: Mapped[list[Order]] = relationship(back_populates="article")


class Order(db.Model):
    """Be the sale of one article."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    article_id: Mapped[int] = mapped_column(ForeignKey(Article.id))
    article: Mapped[Article] = relationship(back_populates="orders")


class Visit(db.Model):
    """Be a visit, which is kept in a database of its own."""

    __bind_key__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str]


@shop.before_app_request
def note_visit() -> None:
    """Note who looks at what."""
    db.session.add(Visit(path=request.path))
    db.session.commit()


@shop.post("/articles")
def add_article() -> Any:
    """Add an article to the shop."""
    article = Article(**request.get_json())
    db.session.add(article)
    db.session.commit()
    return {"id": article.id}, 201


@shop.get("/articles")
def list_articles() -> Any:
    """Show a page of the articles."""
    page = db.paginate(db.select(Article).order_by(Article.name), per_page=2)
    return {"articles": [article.name for article in page], "pages": page.pages}


@shop.get("/articles/<int:number>")
def show_article(number: int) -> Any:
    """Show an article and who bought it."""
    article = db.get_or_404(Article, number)
    return {"stock": article.stock, "customers": sorted(order.customer for order in article.orders)}


@shop.post("/articles/<int:number>/orders")
def buy(number: int) -> Any:
    """Sell an article."""
    article = db.get_or_404(Article, number, with_for_update=True)
    if article.stock == 0:
        return {"error": "sold out"}, 409
    article.stock -= 1
    db.session.add(Order(article=article, **request.get_json()))
    db.session.commit()
    return {"left": article.stock}, 201


@shop.post("/articles/<int:number>/recount")
def recount(number: int) -> Any:
    """Fail in the midst of a transaction."""
    db.get_or_404(Article, number).stock = 1000
    db.session.flush()
    raise LookupError("the counter has lost count")


def create_app(url: str, visits_url: str, **engine_options: Any) -> Flask:
    """Return the application, with its tables."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_BINDS"] = {"visits": {"url": visits_url, **engine_options}}
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options
    db.init_app(app)
    app.register_blueprint(shop)
    with app.app_context():
        db.create_all()
    return app
