"""Who may write, and who may see what."""

from relay.auth.ownership import Ownership, Run
from relay.auth.viewers import MAX_BIGINT, mint_viewer_token
from relay.auth.writers import mint_run_token

__all__ = ["MAX_BIGINT", "Ownership", "Run", "mint_run_token", "mint_viewer_token"]
