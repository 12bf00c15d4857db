"""How Alembic runs here: over one connection, and one process at a time.

The session lock is taken before Alembic looks at the schema, so that of several processes that start at
once one migrates and the others find nothing left to do. It goes with the connection, whoever dies.
"""

from alembic import context
from sqlalchemy import create_engine, pool, text

LOCK = 7_306_081_127

connect = context.config.attributes["connect"]
engine = create_engine(
    "postgresql+psycopg2://", creator=connect, poolclass=pool.NullPool, isolation_level="AUTOCOMMIT"
)
with engine.connect() as guard, engine.connect() as connection:
    guard.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
    connection = connection.execution_options(isolation_level="READ COMMITTED")  # noqa: PLW2901
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
