"""Whose run it is: our own tables, an application's, or the token itself, with and without the database."""

from collections.abc import AsyncIterator, Iterator

import pytest

from relay.auth import Ownership, Run
from relay.auth.viewers import Caller
from relay.connect import Database, shared_link
from relay.errors import Conflict, DatabaseUnavailable, Forbidden, Misconfigured, NotFound
from relay.link import SharedLink
from relay.settings import Settings
from tests.conftest import Servers
from tests.sql import sql

MINE, OTHER = Caller(7, 2**40), Caller(8, 2**40)
MAPPED = {
    "conversation_sql": "SELECT owner AS user_id FROM chats WHERE id = %(conversation_id)s",
    "runs_sql": "SELECT name AS run_id, state AS status, NULL AS error_message, now() AS created_at, "
    "NULL::timestamptz AS finished_at, NULL::timestamptz AS last_heartbeat_at "
    "FROM jobs WHERE chat = %(conversation_id)s AND name NOT LIKE 'draft-%%'",
}


@pytest.fixture
async def link(servers: Servers) -> AsyncIterator[SharedLink]:
    made = shared_link(servers.redis_url)
    yield made
    await made.close()


@pytest.fixture
def application(servers: Servers) -> Iterator[None]:
    """Tables that are not ours."""
    with sql(servers.database_url) as cursor:
        cursor.execute("CREATE TABLE chats (id INT, owner INT)")
        cursor.execute("CREATE TABLE jobs (name TEXT, chat INT, state TEXT)")
        cursor.execute("INSERT INTO chats VALUES (1, 7), (2, 8), (3, 7)")
        jobs = "('a', 1, 'running'), ('b', 2, 'failed'), ('c', 1, 'pending'), ('draft-d', 1, '')"
        cursor.execute(f"INSERT INTO jobs VALUES {jobs}")  # noqa: S608
        yield
        cursor.execute("DROP TABLE chats, jobs")


def nowhere() -> Database:
    return Database("postgresql://postgres@127.0.0.1:1/postgres", 1)


async def status(ownership: Ownership, caller: Caller, conversation: int, run: str) -> str:
    found = await ownership.check(caller, conversation, run)
    assert isinstance(found, Run)
    assert (found.run_id, found.conversation_id) == (run, conversation)
    return found.status


async def test_our_own_tables_say_who_owns_a_run(database: Database, link: SharedLink) -> None:
    ownership = Ownership(database, [link], Settings())
    await ownership.claim("a", 1, 7)
    assert await status(ownership, MINE, 1, "a") == "pending"
    assert [run.run_id for run in await ownership.runs(MINE, 1)] == ["a"]
    for caller, conversation, run, error in (
        (OTHER, 1, "a", Forbidden),
        (OTHER, 1, "b", Forbidden),
        (MINE, 2, "a", NotFound),
        (MINE, 1, "b", NotFound),
        (MINE, 1 << 70, "a", NotFound),
    ):
        with pytest.raises(error):
            await ownership.check(caller, conversation, run)
    with pytest.raises(Conflict):
        await ownership.claim("a", 1, 8)


async def test_a_conversation_that_changes_hands_is_its_new_owner_s(
    database: Database, link: SharedLink, servers: Servers
) -> None:
    ownership = Ownership(database, [link], Settings(access_cache_s=0))
    await ownership.claim("a", 1, 7)
    await ownership.check(MINE, 1, "a")
    await database.run(lambda connection: connection.cursor().execute("UPDATE conversations SET user_id = 8"))
    assert await status(ownership, OTHER, 1, "a") == "pending"
    with pytest.raises(Forbidden):
        await ownership.check(MINE, 1, "a")
    blind = Ownership(nowhere(), [link], Settings())
    with pytest.raises(DatabaseUnavailable):
        await blind.check(MINE, 1, "a")
    assert await blind.check(OTHER, 1, "a") is None


async def test_what_is_known_of_an_owner_lets_back_in_without_the_database(
    database: Database, link: SharedLink
) -> None:
    await Ownership(database, [link], Settings()).claim("a", 1, 7)
    blind = Ownership(nowhere(), [link], Settings())
    assert await blind.check(MINE, 1, "a") is None
    for caller, run in ((OTHER, "a"), (MINE, "b")):
        with pytest.raises(DatabaseUnavailable):
            await blind.check(caller, 1, run)


@pytest.mark.usefixtures("application")
async def test_an_application_s_tables_say_it_instead(database: Database, link: SharedLink) -> None:
    ownership = Ownership(database, [link], Settings.model_validate(MAPPED))
    assert await status(ownership, MINE, 1, "a") == "running"
    assert await status(ownership, OTHER, 2, "b") == "failed"
    assert {run.run_id for run in await ownership.runs(MINE, 1)} == {"a", "c"}
    assert await ownership.runs(MINE, 3) == []
    for caller, conversation, run, error in (
        (OTHER, 1, "a", Forbidden),
        (MINE, 1, "b", NotFound),
        (MINE, 1, "draft-d", NotFound),
        (MINE, 9, "a", NotFound),
    ):
        with pytest.raises(error):
            await ownership.check(caller, conversation, run)
    blind = Ownership(nowhere(), [link], Settings.model_validate(MAPPED))
    assert await blind.check(MINE, 1, "a") is None


@pytest.mark.usefixtures("application")
async def test_there_making_a_run_known_gives_nobody_a_right(database: Database, link: SharedLink) -> None:
    await Ownership(database, [link], Settings.model_validate(MAPPED)).claim("a", 1, 8)
    for using in (database, nowhere()):
        with pytest.raises((Forbidden, DatabaseUnavailable)):
            await Ownership(using, [link], Settings.model_validate(MAPPED)).check(OTHER, 1, "a")


@pytest.mark.parametrize(
    "broken", ["SELECT nothing", "SELEC", "SELECT owner FROM chats", "SELECT nope FROM nowhere"]
)
@pytest.mark.usefixtures("application")
async def test_statements_that_do_not_fit_are_the_operator_s_to_mend(
    database: Database, link: SharedLink, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    ownership = Ownership(database, [link], Settings.model_validate({**MAPPED, "conversation_sql": broken}))
    with pytest.raises(Misconfigured) as refused:
        await ownership.check(MINE, 1, "a")
    assert "RELAY_CONVERSATION_SQL" in caplog.text
    assert "RELAY_CONVERSATION_SQL" in str(refused.value)
    assert broken not in caplog.text + str(refused.value)


@pytest.mark.usefixtures("application")
async def test_tables_of_our_own_that_are_not_there_are_no_mistake_in_a_setting(
    servers: Servers, database: Database, link: SharedLink
) -> None:
    settings = Settings.model_validate({**MAPPED, "runs_sql": None})
    with sql(servers.database_url) as cursor:
        cursor.execute("ALTER TABLE research_pipeline_runs RENAME TO elsewhere")
        try:
            with pytest.raises(Misconfigured, match="run `relay migrate`"):
                await Ownership(database, [link], settings).check(MINE, 1, "a")
        finally:
            cursor.execute("ALTER TABLE elsewhere RENAME TO research_pipeline_runs")


async def test_tables_that_may_not_be_read_are_the_operator_s_to_mend(
    servers: Servers, link: SharedLink, caplog: pytest.LogCaptureFixture
) -> None:
    restricted = Database(servers.database_url, 1)
    await restricted.run(lambda connection: connection.cursor().execute("SET ROLE pg_monitor"))
    with pytest.raises(Misconfigured, match="may not read"):
        await Ownership(restricted, [link], Settings()).check(MINE, 1, "a")
    restricted.close()
    assert "42501" in caplog.text


async def test_a_token_that_names_runs_is_asked_nothing_else(database: Database, link: SharedLink) -> None:
    ownership = Ownership(database, [link], Settings())
    await ownership.claim("known", 1, 8)
    named = MINE._replace(runs=("known", "unknown"))
    assert await status(ownership, named, 5, "known") == "pending"
    assert await status(ownership, named, 5, "unknown") == "pending"
    assert {run.run_id for run in await ownership.runs(named, 1)} == {"known", "unknown"}
    assert await ownership.runs(MINE._replace(runs=()), 1) == []
    with pytest.raises(NotFound):
        await ownership.check(MINE._replace(runs=("other",)), 1, "known")
    blind = Ownership(nowhere(), [link], Settings())
    assert await blind.check(named, 1, "known") is None
    with pytest.raises(NotFound):
        await blind.check(named, 1, "other")
