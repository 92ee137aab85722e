"""What every scenario gets: one running server for all of them, and people on it."""

import itertools

import pytest
import pytest_asyncio
from people import Person
from server import Server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server():
    server = Server()
    try:
        server.start()
        yield server
        server.stop()
    finally:
        server.discard()


@pytest_asyncio.fixture
async def people(server):
    """Makes people with an account: `alice = await people("alice")`. Each has a name that nobody else has."""
    made = []

    async def make(name, **options):
        person = await Person.register(server, f"{name}{next(_numbers)}", **options)
        made.append(person)
        return person

    make.made = made
    yield make
    for person in made:
        await person.close()
