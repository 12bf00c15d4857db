"""Why a store is of no use, in words for operators: what is wrong, and what to do where that is known. What a
driver says is read here, and never repeated."""

import psycopg2
import redis.exceptions

from relay.errors import DatabaseUnavailable, RelayError

NO_TABLES = "The database has no tables yet; run `relay migrate`."

_BY_STATE = {
    "42P01": NO_TABLES,
    "42703": "The tables are of an older version; run `relay migrate`.",
    "42501": "The role in DATABASE_URL may not do that; use one that may, relay_operator for commands.",
}
_REDIS_CREDENTIALS = "Redis refuses the user or password of REDIS_URL; check the user and password."
_CREDENTIALS = "PostgreSQL refuses the user or password of DATABASE_URL; check the user and password."
_NO_DATABASE = "PostgreSQL has no database of the name that is in DATABASE_URL; check the name, or create it."
_BY_HOST = "PostgreSQL lets nobody in from this machine, or only otherwise; check its pg_hba.conf."
_OPTION = "DATABASE_URL has an option that is not understood, or its value is not; check what follows its ?."

_AT_CONNECTING = {
    "authentication failed": _CREDENTIALS,
    "no password supplied": _CREDENTIALS,
    "is not permitted to log in": _CREDENTIALS,
    "pg_hba.conf": _BY_HOST,
    "invalid ": _OPTION,
}
"""By what is in the words of the server, or of libpq: there is no code for what ends a connection."""


def known(error: BaseException | None) -> str | None:
    """What to do about an error of a store, where trying again does not help, or not that alone."""
    if isinstance(error, redis.exceptions.AuthenticationError):
        return _REDIS_CREDENTIALS
    if isinstance(error, redis.exceptions.NoPermissionError):
        return "The user in REDIS_URL may not do that; use one who may, relay_operator for commands."
    if isinstance(error, DatabaseUnavailable):
        return known(error.__cause__)
    return _of_postgres(error) if isinstance(error, psycopg2.Error) else None


def _of_postgres(error: psycopg2.Error) -> str | None:
    if error.pgcode:
        return _BY_STATE.get(error.pgcode)
    said = str(error)
    if "does not exist" in said:
        return _NO_DATABASE if ' database "' in said else _CREDENTIALS
    return next((sentence for words, sentence in _AT_CONNECTING.items() if words in said), None)


def why(error: Exception) -> str:
    """The same for who tries again anyway: at least who it was, and without a full stop."""
    if isinstance(error, RelayError):
        return (known(error) or _unknown(error)).removesuffix(".")
    if isinstance(error, redis.exceptions.AuthenticationError):
        return _REDIS_CREDENTIALS.removesuffix(".")
    return f"Redis: {type(error).__name__}"


def _unknown(error: RelayError) -> str:
    cause = error.__cause__
    if not isinstance(error, DatabaseUnavailable) or not isinstance(cause, psycopg2.Error):
        return str(error)
    return f"PostgreSQL refuses it ({cause.pgcode})" if cause.pgcode else "PostgreSQL does not answer"
