"""The notes of docs/examples/fastapi on SQLAlchemy's own pool, for `web_load.py`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import sqlalchemy as sa
from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

engine = create_async_engine(
    sa.make_url(os.environ["DB_URL"]).set(drivername="postgresql+asyncpg"),
    pool_size=int(os.environ["DB_POOL_SIZE"]),
    max_overflow=0,
    pool_pre_ping="DB_POOL_PRE_PING" in os.environ,
)


async def connection() -> AsyncIterator[AsyncConnection]:
    """Give a request its connection, which commits before the response is sent, as the extension's sessions do."""
    async with engine.begin() as own:
        yield own


# the scope is what makes it commit before the response
Connection = Annotated[AsyncConnection, Depends(connection, scope="function")]


class Note(BaseModel):
    """Be what is written."""

    text: str = Field(max_length=200)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Have the table, and close the pool at the end."""
    async with engine.begin() as own:
        await own.execute(sa.text("CREATE TABLE IF NOT EXISTS notes (text VARCHAR(200) NOT NULL)"))
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/notes")
async def read(own: Connection) -> list[str]:
    """Answer with all notes."""
    return list((await own.execute(sa.text("SELECT text FROM notes"))).scalars().all())


@app.post("/notes", status_code=201)
async def write(note: Note, own: Connection) -> Note:
    """Keep a note."""
    await own.execute(sa.text("INSERT INTO notes (text) VALUES (:text)"), {"text": note.text})
    return note
