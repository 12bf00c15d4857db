"""How much of everything: the whole measurement, or a quick look that shows that all of it works."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Rounds of each measurement, the seconds of one, and how many there are of what it is about."""

    rounds: int = 3
    seconds: float = 3.0
    viewers: int = 1000
    idle_viewers: int = 5000
    many_runs: int = 500
    many_viewers: int = 2000
    storm_viewers: int = 2000
    backlog: int = 200_000
    requests: int = 100
    viewer_steps: tuple[int, ...] = (100, 1000, 5000)
    backlog_steps: tuple[int, ...] = (10_000, 100_000, 1_000_000)

    @property
    def slices(self) -> int:
        """How often two take turns of a slice each while both of them run: the machine may be half as fast a
        few seconds later."""
        return 4 * self.rounds

    @property
    def slice_s(self) -> float:
        return self.seconds / 2


WHOLE = Sizes()
QUICK = Sizes(
    rounds=1,
    seconds=1.0,
    viewers=1000,
    idle_viewers=1000,
    many_runs=100,
    many_viewers=400,
    storm_viewers=500,
    backlog=30_000,
    requests=20,
    viewer_steps=(100, 1000),
    backlog_steps=(10_000, 30_000),
)
