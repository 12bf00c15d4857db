"""The schema, and the functions in Redis, brought up to date. Safe to call from several processes at once."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import migrations
from relay.connect import database, persister_clients
from relay.errors import DatabaseUnavailable, Misconfigured
from relay.stream import functions

if TYPE_CHECKING:
    from alembic.config import Config


def config(database_url: str) -> "Config":
    """Alembic's configuration, without a file: the scripts are where the package is."""
    from alembic.config import Config  # noqa: PLC0415 - with SQLAlchemy, a third of a worker's start

    made = Config()
    made.set_main_option("script_location", str(Path(migrations.__file__).parent))
    made.attributes["connect"] = partial(database, database_url)
    return made


def upgrade(database_url: str) -> None:
    """Raises DatabaseUnavailable or Misconfigured."""
    from alembic import command  # noqa: PLC0415 - as above
    from alembic.util import CommandError  # noqa: PLC0415 - as above
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - as above

    try:
        command.upgrade(config(database_url), "head")
    except DBAPIError as error:
        raise DatabaseUnavailable from error.orig
    except CommandError as error:
        raise Misconfigured(
            "The database has a schema that this version does not know; run a version that is as new."
        ) from error


def load_functions(redis_url: str) -> None:
    """For workers whose users may not. Those of other versions stay. Raises redis errors."""
    for client in set(persister_clients(redis_url)):
        with closing(client):
            client.function_load(functions.LIBRARY, replace=True)
