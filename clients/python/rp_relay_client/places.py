"""Where events wait on disk."""

import os
from pathlib import Path

ENVIRONMENT = "RELAY_SPOOL_DIR"


def spool_directory(chosen: str | Path | None, relay: str) -> Path | None:
    """The directory for events to that relay: below the chosen one, that of the environment, or the user's
    state directory, which outlives a restart. None where there is not even a home."""
    if chosen is not None:
        return Path(chosen).absolute() / relay
    if ENVIRONMENT in os.environ:
        return Path(os.environ[ENVIRONMENT]).absolute() / relay
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return Path(state) / "rp-relay" / relay
