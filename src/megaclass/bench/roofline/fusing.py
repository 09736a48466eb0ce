"""What is left to move when norms, activations and residual sums are one pass over memory.

A chain of operators that each take their input as it comes (a norm, an activation, a sum; their gradients) reads what
enters the chain and writes what others need of it. What stays inside is not in memory; a backward pass that needs it
computes it again from what entered.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from megaclass.bench.roofline.trace import DATA, FORWARD, Bytes, Op


@dataclass(eq=False)
class _Chain:
    begin: int  # place of the first operator of its latest part
    members: list[Op] = field(default_factory=list)
    kept: dict[int, Bytes] = field(default_factory=dict)  # written to memory
    entering: dict[int, Bytes] = field(default_factory=dict)

    @property
    def written(self) -> dict[int, Bytes]:
        return {value: size for op in self.members for value, size in op.writes.items()}


def fused(ops: Sequence[Op], into: Collection[str] = ()) -> list[Op]:
    """The operators with every chain as one. into: kinds whose output a chain takes before it is in memory: products,
    when a model is used and its norms have their statistics."""
    chain_of: dict[int, _Chain] = {}  # by value
    readers: dict[int, list[_Chain]] = defaultdict(list)
    chains = _chains(ops, into)
    for chain in chains:
        chain_of |= dict.fromkeys(chain.written, chain)
        for op in chain.members:
            for value in op.reads:
                readers[value].append(chain)
    for chain in chains:
        chain.kept = {
            value: size
            for value, size in chain.written.items()
            if not size.image or not _inside(chain, readers[value], into)
        }
    for chain in chains:
        reads = {value: size for op in chain.members for value, size in op.reads.items()}
        entering = {value: size for value, size in reads.items() if chain_of.get(value) is not chain}
        chain.entering = _from_memory(entering, chain_of)
    return [_as_one(chain) for chain in chains]


def _chains(ops: Sequence[Op], into: Collection[str]) -> list[_Chain]:
    made: dict[int, tuple[int, Op]] = {
        value: (place, op) for place, op in enumerate(ops) for value in op.writes
    }
    readers: dict[int, list[Op]] = defaultdict(list)
    for op in ops:
        for value in op.reads:
            readers[value].append(op)
    chains: list[_Chain] = []
    chain_of: dict[int, _Chain] = {}  # by operator
    normed: set[int] = set()  # operators that are norms or follow one in their chain
    for place, op in enumerate(ops):
        before = {
            id(chain_of[id(made[v][1])]): chain_of[id(made[v][1])]
            for v in op.reads
            if v in made and _continues(made[v][1], op, into, id(made[v][1]) in normed)
        }
        ready = [
            chain
            for chain in before.values()
            # What else the operator reads was there when the chain began.
            if all(
                v not in made or chain_of[id(made[v][1])] is chain or made[v][0] < chain.begin
                for v in op.reads
            )
        ]
        mine = max(ready, key=lambda chain: chain.begin, default=None)
        if mine is None:
            mine = _Chain(place)
            chains.append(mine)
        mine.members.append(op)
        for chain in before.values():
            # One that nothing else waits for can wait for this one.
            if chain is not mine and all(
                reader is op for value in chain.written for reader in readers[value] if _same_pass(reader, op)
            ):
                mine.members[:0] = chain.members
                chains.remove(chain)
        chain_of |= {id(member): mine for member in mine.members}
        before_it = [id(made[v][1]) for v in op.reads if v in made and chain_of[id(made[v][1])] is mine]
        if op.kind == "norm" or normed.intersection(before_it):
            normed.add(id(op))
    return chains


def _continues(before: Op, op: Op, into: Collection[str], after_norm: bool) -> bool:
    """In training a norm, or its gradient, needs all of its input before its first output: it cannot follow another in
    one pass. (The pass that its own sums may take is not counted.)"""
    begins = not op.passes or (op.kind == "norm" and after_norm and not into)
    return not begins and (before.passes or before.kind in into) and _same_pass(before, op)


def _same_pass(one: Op, other: Op) -> bool:
    return (one.direction == FORWARD) == (other.direction == FORWARD)


def _inside(chain: _Chain, readers: list[_Chain], into: Collection[str]) -> bool:
    """Whether a value never is in memory: it is passed on within its chain, and only a backward pass asks for it
    besides."""
    (first, *_) = chain.members
    if not first.passes and first.kind not in into:
        return False
    own = [reader for reader in readers if _same_pass(reader.members[0], first)]
    return chain in own and all(reader is chain for reader in own)


def _from_memory(entering: dict[int, Bytes], chain_of: dict[int, _Chain]) -> dict[int, Bytes]:
    """What has to be read for what enters: itself, or where it is not in memory what it is computed from."""
    found: dict[int, Bytes] = {}
    again: dict[int, _Chain] = {}
    for value, size in entering.items():
        source = chain_of.get(value)
        if source is None or value in source.kept:
            found[value] = size
        else:
            again[id(source)] = source
    for source in again.values():
        found |= source.entering
    # And not what can be computed from the rest: a sign of an activation from the input of the norm before it.
    return {
        value: size
        for value, size in found.items()
        if not _follows(value, chain_of.get(value), found.keys() - {value})
    }


def _follows(value: int, source: _Chain | None, others: set[int]) -> bool:
    if source is None or not source.members[0].passes or source.members[0].direction != FORWARD:
        return False
    return {v for v, size in source.entering.items() if size.image} <= others


def _as_one(chain: _Chain) -> Op:
    members = chain.members
    kinds = list(dict.fromkeys(op.kind for op in members))
    direction = DATA if any(op.direction == DATA for op in members) else members[0].direction
    return Op(
        kind="+".join(kinds),
        stage=max(members, key=lambda op: op.moved.image).stage,
        direction=direction,
        flops=sum(op.flops for op in members),
        reads=chain.entering,
        writes=chain.kept,
        passes=members[0].passes,
    )
