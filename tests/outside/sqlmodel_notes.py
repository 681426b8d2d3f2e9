"""Notes on FastAPI and SQLModel, once in threads and once in tasks. They know nothing of sqlspec."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, Session, SQLModel, create_engine, select
from sqlmodel.ext.asyncio.session import AsyncSession


class NewNote(SQLModel):
    """Be what a client sends."""

    text: str
    author: str = Field(index=True)


class Note(NewNote, table=True):
    """Be a note that is kept."""

    id: int | None = Field(default=None, primary_key=True)


def get_session(request: Request) -> Iterator[Session]:
    """Give a request its session."""
    with Session(request.app.state.engine) as session:
        yield session


async def get_async_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Give a request its session, where it is handled in a task."""
    async with AsyncSession(request.app.state.async_engine) as session:
        yield session


def get_connection(request: Request) -> Iterator[sa.Connection]:
    """Give a request a connection, by whatever thread is free, to be closed by another."""
    with request.app.state.engine.connect() as connection:
        yield connection


InThread = Annotated[Session, Depends(get_session)]
InTask = Annotated[AsyncSession, Depends(get_async_session)]

notes = APIRouter()


@notes.post("/notes", status_code=201)
def add_note(note: NewNote, session: InThread) -> Note:
    """Keep a note."""
    kept = Note.model_validate(note)
    session.add(kept)
    session.commit()
    session.refresh(kept)
    return kept


@notes.get("/notes")
def list_notes(author: str, session: InThread) -> list[Note]:
    """Show the notes of an author."""
    return list(session.exec(select(Note).where(Note.author == author).order_by(Note.text)))


@notes.get("/notes/{number}")
def show_note(number: int, session: InThread) -> Note:
    """Show a note."""
    note = session.get(Note, number)
    if note is None:
        raise HTTPException(404)
    return note


@notes.post("/tasks/notes", status_code=201)
async def add_note_in_task(note: NewNote, session: InTask) -> Note:
    """Keep a note."""
    kept = Note.model_validate(note)
    session.add(kept)
    await session.commit()
    await session.refresh(kept)
    return kept


@notes.get("/tasks/notes")
async def list_notes_in_task(author: str, session: InTask) -> list[Note]:
    """Show the notes of an author."""
    return list(await session.exec(select(Note).where(Note.author == author).order_by(Note.text)))


@notes.get("/tasks/sleep")
async def sleep(session: InTask) -> None:
    """Keep the database busy for longer than anybody waits."""
    await session.exec(select(sa.func.pg_sleep(25)))


@notes.get("/meeting")
async def meet(connection: Annotated[sa.Connection, Depends(get_connection)], request: Request) -> bool:
    """Wait for another request that has a connection as well."""
    await request.app.state.meeting.wait()
    return not connection.closed


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables, and close both pools at the end."""
    try:
        SQLModel.metadata.create_all(app.state.engine)
        yield
    finally:
        app.state.engine.dispose()
        await app.state.async_engine.dispose()


def create_app(url: str, async_url: str, **engine_options: Any) -> FastAPI:
    """Return the application."""
    app = FastAPI(lifespan=lifespan)
    app.state.engine = create_engine(url, **engine_options)
    app.state.async_engine = create_async_engine(async_url, **engine_options)
    app.state.meeting = asyncio.Barrier(2)
    app.include_router(notes)
    return app
