"""What the commands of both programs have in common: what goes wrong is a sentence, and not a traceback."""

from typing import Any

import click

from relay import logs
from relay.errors import RelayError
from relay.startup import stores_by_hand


class Program(click.Group):
    """Ends a command with a sentence, and code 1, where it raises a RelayError or a redis error."""

    def invoke(self, ctx: click.Context) -> Any:
        logs.configure("text", "warning")  # until the command has settings, and where it logs nothing else
        try:
            with stores_by_hand():
                return super().invoke(ctx)
        except RelayError as error:
            raise click.ClickException(str(error)) from error
