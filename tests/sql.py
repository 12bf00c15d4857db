"""SQL past the product: what tests look up, set up and break."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg2.extensions


@contextmanager
def sql(url: str) -> Iterator[psycopg2.extensions.cursor]:
    """A cursor on a connection of its own. Each statement is a transaction."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


def query(url: str, statement: str, arguments: Sequence[Any] = ()) -> list[Any]:
    """The rows that one statement finds."""
    with sql(url) as cursor:
        cursor.execute(statement, arguments or None)
        return cursor.fetchall()


def rows(url: str, columns: str = "id", table: str = "rp_paper_generation_events") -> list[Any]:
    """What a table holds, in the order of the ids; values alone where it is one column."""
    found = query(url, f"SELECT {columns} FROM {table} ORDER BY id")  # noqa: S608
    return [row[0] if len(row) == 1 else row for row in found]
