"""What an operator can set for persisters, each with its reason."""

import socket
from typing import Annotated

from pydantic import Field

from relay.settings import Address, StoreSettings, shaped


class Settings(StoreSettings):
    """A persister."""

    persister_name: Annotated[str, shaped("[A-Za-z0-9._-]{1,100}", "1 to 100 of A-Z a-z 0-9 . _ -")] = Field(
        default_factory=socket.gethostname,
        description="Its name in the consumer group: the same after a restart, so that it finds what it had "
        "begun, and another one for each process that runs at the same time.",
    )
    persister_ops_listen: Address | None = Field(
        None,
        description="`host:port` of the private listener, with /metrics, /readyz and /livez. Where several "
        "run on a machine, each takes the first free port from there on. Without it there is none.",
    )
    persister_batch: int = Field(
        4000,
        gt=0,
        le=10_000,
        description="Entries in one transaction at most: large enough to be fast, small to repeat.",
    )
    persister_batch_bytes: int = Field(
        8 << 20,
        ge=1 << 10,
        description="How much JSON a batch should hold, and so about how much memory it takes several times "
        "over: where events are large, batches have fewer of them.",
    )
    persister_claim_s: float = Field(
        30,
        gt=0,
        description="How long a batch may be with a silent peer before it is taken over: above any commit.",
    )
    persister_stuck_s: float = Field(
        120,
        gt=0,
        description="How long a step may take before the process ends itself, to be started again: a server "
        "that is connected and frozen never answers. Above the time for a batch row by row.",
    )
    log_retention_s: float = Field(
        600,
        ge=60,
        description="How long archived entries stay in the shard log, for web workers that were away.",
    )
    run_log_entries: int = Field(
        10_000,
        gt=0,
        description="Archived entries that a run log keeps; older ones are replayed from PostgreSQL.",
    )
    run_log_ttl_s: float = Field(
        86_400,
        gt=0,
        description="How long a run log outlives its last archived event, for viewers who come back.",
    )
