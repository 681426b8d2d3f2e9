"""Notes: an application with sessions, health and metrics: `uvicorn --app-dir docs/examples/fastapi app:app`."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header
from pydantic import BaseModel, Field

from sqlspec import AsyncSession, EnvironmentConfig, SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.extensions.fastapi import FastAPISQLSpec

spec = SQLSpec()
config = EnvironmentConfig.from_env() if "DB_URL" in os.environ else SQLiteConfig(database="example.db")
spec.register_config(config, name="notes")
db = FastAPISQLSpec(spec, warm={"notes": 2})
Notes = Annotated[AsyncSession, db.async_session("notes")]


class Note(BaseModel):
    text: str = Field(max_length=200)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with db.lifespan(app):
        async with spec.get_async_session("notes") as session:
            await session.execute("CREATE TABLE IF NOT EXISTS notes (text VARCHAR(200) NOT NULL)")
        yield


async def operator(token: Annotated[str, Header()] = "") -> bool:
    """Let in who knows the token; where none is set, nobody does."""
    expected = os.environ.get("OPERATOR_TOKEN", "")
    return expected != "" and secrets.compare_digest(token.encode(), expected.encode())


app = FastAPI(lifespan=lifespan)
app.include_router(db.router("ready", auth=None))
app.include_router(db.router("health", "metrics", "holders", auth=operator), prefix="/internal")


@app.get("/notes")
async def read(session: Notes) -> list[str]:
    return list((await session.execute("SELECT text FROM notes").scalars()).all())


@app.post("/notes", status_code=201)
async def write(note: Note, session: Notes) -> Note:
    await session.execute("INSERT INTO notes (text) VALUES (?)", (note.text,))
    return note
