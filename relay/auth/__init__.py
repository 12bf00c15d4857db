"""Who may write, and who may see what."""

from relay.auth.ownership import MAX_BIGINT, Ownership, Run
from relay.auth.viewers import mint_viewer_token
from relay.auth.writers import mint_run_token

__all__ = ["MAX_BIGINT", "Ownership", "Run", "mint_run_token", "mint_viewer_token"]
