"""What the runner and the worker ask of a benchmark: its cases, its contenders, a turn, and the numbers of a row."""

from collections.abc import Callable
from typing import Any, Protocol

from megaclass.bench.timing import Stopwatch
from megaclass.parallel.groups import World


class Case(Protocol):
    """One measurement, of which all contenders take their turns. A frozen dataclass, so that it travels as JSON."""

    @property
    def benchmark(self) -> str:
        """The name of its benchmark in :mod:`megaclass.bench.registry`."""
        ...

    @property
    def text(self) -> str:
        """For a person, in a line."""
        ...

    @property
    def world_size(self) -> int:
        """Processes of one contender."""
        ...

    @property
    def warmup(self) -> int:
        """Turns that leave no sample."""
        ...

    @property
    def steps(self) -> int:
        """Turns that leave one."""
        ...

    def parameters(self) -> dict[str, Any]:
        """For a row."""
        ...


Tell = Callable[[float], None]
"""Takes how much of a turn is done, 0 to 1."""


class Benchmark(Protocol):
    """``case_type`` is a dataclass that is a :class:`Case`. All but ``measures`` is called in the worker."""

    case_type: type[Any]

    def load_libraries(self, case: Any, world: World) -> None:
        """Let the libraries load what they need at first use: it is no memory of a contender."""
        ...

    def contender(self, implementation: str, case: Any, world: World, options: dict[str, Any]) -> Any:
        """An implementation, ready for its first turn, with ``facts()``: parameters of the case as it really
        ran it."""
        ...

    def turn(self, contender: Any, index: int, watch: Stopwatch, tell: Tell) -> dict[str, Any]:
        """Let the contender work once. The answer has ``ms``, or the ``samples_ms`` of the steps of a longer turn, and
        what else ``measures`` wants to know."""
        ...

    def limits(self, case: Any, world: World) -> dict[str, float]:
        """What the machine can do at most, measured when the contender is gone."""
        ...

    def measures(
        self,
        implementation: str,
        case: Any,
        turns: list[list[dict[str, Any]]],
        limits: list[dict[str, float]],
    ) -> dict[str, Any]:
        """The fields of an ``ok`` row that follow from its timed turns (of each the answer of every rank) and
        from the limits (of every rank)."""
        ...


def samples_ms(turns: list[list[dict[str, Any]]]) -> list[float]:
    """A turn, or each of its steps, takes as long as its slowest rank."""
    return [
        round(max(ranks), 4)
        for turn in turns
        for ranks in zip(*(answer.get("samples_ms", [answer.get("ms")]) for answer in turn), strict=True)
    ]
