"""How long and how much: the quick run of about a minute, and the full one."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Effort:
    """The size of a run."""

    rounds: int
    seconds: float
    """Of each measurement; a quarter more goes before it to warm up."""
    many: int
    """Open connections of the round trips on many connections."""
    idle: int
    """Open connections when memory is measured."""
    streams: tuple[int, ...]
    """How many streams bulk has."""
    routes: tuple[int, ...]
    requests: int
    """To the real Caddy."""

    def scaled(self, factor: float) -> "Effort":
        """The same with other durations and counts."""
        return replace(
            self,
            seconds=self.seconds * factor,
            many=max(32, round(self.many * factor)),
            idle=max(16, round(self.idle * factor)),
            requests=max(50, round(self.requests * factor)),
        )


QUICK = Effort(
    rounds=1,
    seconds=0.3,
    many=2000,
    idle=5000,
    streams=(4,),
    routes=(10, 100_000),
    requests=1000,
)
FULL = Effort(
    rounds=5,
    seconds=1.0,
    many=2000,
    idle=5000,
    streams=(1, 4, 64),
    routes=(10, 1000, 100_000),
    requests=4000,
)
