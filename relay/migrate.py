"""The schema, brought up to date. Safe to call from several processes at once."""

from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations


def config(database_url: str) -> Config:
    """Alembic's configuration, without a file: the scripts are where the package is."""
    made = Config()
    made.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scheme, separator, rest = database_url.partition("://")
    made.attributes["url"] = f"postgresql+psycopg2{separator}{rest}" if separator else scheme
    return made


def upgrade(database_url: str, revision: str = "head") -> None:
    command.upgrade(config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    command.downgrade(config(database_url), revision)
