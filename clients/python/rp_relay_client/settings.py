"""What a user can set, each with its reason."""

from dataclasses import dataclass

from rp_relay_client.encoding import EVENT_BYTES

MIB = 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """The defaults suit a pipeline that emits up to some thousand events a second."""

    batch_events: int = 500
    """Events in one request, at most; the relay takes 1000."""

    batch_bytes: int = MIB
    """Bytes in one request, at most; the relay takes 8 MiB. What is lost on the way is sent again whole."""

    batch_interval_s: float = 0.1
    """How long a request waits for more events after the one before it. A lone event never waits."""

    queue_events: int = 100_000
    """Events in memory on their way to the spool: some tenths of a second of nothing but emitting, or of a
    disk that hangs. What comes faster for longer is dropped."""

    memory_bytes: int = 32 * MIB
    """What may wait in memory where nothing can or may go to disk."""

    spool_bytes: int = 256 * MIB
    """What may wait on disk for the relay to come back; later events are dropped, and counted."""

    segment_bytes: int = 8 * MIB
    """How large a file of the spool grows before the next is begun. A file goes once all of it is sent."""

    fsync: bool = False
    """Wait for the disk at each write. Only a crash of the machine needs it, a killed process does not."""

    timeout_s: float = 10.0
    """How long the relay may take to connect, or to answer."""

    backoff_s: float = 0.5
    """The first pause after a failure; each further one is twice as long, give or take a random part."""

    backoff_max_s: float = 30.0
    """The longest such pause: an idle relay coming back is noticed within it."""

    retry_after_max_s: float = 600.0
    """The longest pause that the relay can ask for."""

    slow_retry_s: float = 60.0
    """The pause where a person has to act first, such as for a wrong token."""

    adopt_interval_s: float = 5.0
    """How often to look for events that other processes left behind when they died."""

    exit_timeout_s: float = 5.0
    """How long the end of the process, or `close`, may wait for the last events to be sent."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch_events <= 1000:
            raise ValueError("batch_events must be 1 to 1000")
        if not EVENT_BYTES <= self.batch_bytes <= 8 * MIB:
            raise ValueError("batch_bytes must be 256 KiB to 8 MiB")
        if min(self.backoff_s, self.timeout_s, self.slow_retry_s, self.adopt_interval_s) <= 0:
            raise ValueError("pauses and timeouts must be above 0")
