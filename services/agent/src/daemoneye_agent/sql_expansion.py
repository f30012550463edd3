"""How large a query becomes inside SQLite, told before SQLite tries.

``process_events`` is a view with one arm for each partition. SQLite's planner copies the SELECT
around such a view into every arm, subqueries included, and a WITH into every place that names it.
Three nested SELECTs over a year of partitions take gigabytes before the first row, at a time when neither
the progress callback nor any limit of SQLite is asked.

Invariant: ``expanded_nodes`` is not smaller than what the planner makes, up to a constant factor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlglot import exp

__all__ = ["MAX_EXPANDED_NODES", "Shape", "expanded_nodes", "shape_of"]

MAX_EXPANDED_NODES = 1_000_000
"""About 150 MB at worst, for the time the query runs."""

PARTITIONED = frozenset({"process_events"})
_TABLE_NODES = 60
# Above this many SELECTs in a statement SQLite no longer copies joined views into each other.
_MAX_JOIN_ARMS = 500


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What of a query decides its size: a WITH that is named twice is the same object twice."""

    own_nodes: int
    sources: tuple["Shape", ...] = ()
    subqueries: tuple["Shape", ...] = ()
    is_compound: bool = False
    is_partitioned: bool = False


@dataclass(frozen=True, slots=True)
class _Size:
    arms: int
    nodes: int


_TABLE = Shape(_TABLE_NODES)
_VIEW = Shape(_TABLE_NODES, is_partitioned=True)

_Ctes = Mapping[str, Shape]


def expanded_nodes(shape: Shape, partitions: int) -> int:
    """The nodes of the syntax tree after expansion, with this many arms in every view."""
    return _measure(shape, max(1, partitions), {}).nodes


def _measure(shape: Shape, partitions: int, known: dict[Shape, _Size]) -> _Size:
    if shape in known:
        return known[shape]
    sources = [_measure(item, partitions, known) for item in shape.sources]
    inner = sum(_measure(item, partitions, known).nodes for item in shape.subqueries)
    arms = max(1, sum(size.arms for size in sources))
    below = sum(size.nodes for size in sources)
    if shape.is_partitioned:
        result = _Size(partitions, partitions * shape.own_nodes)
    elif shape.is_compound:
        result = _Size(arms, below + shape.own_nodes + inner)
    else:
        nodes = below + arms * (shape.own_nodes + inner)
        if arms <= _MAX_JOIN_ARMS:
            nodes += sum(size.arms * (below - size.nodes) for size in sources)
        result = _Size(arms, nodes)
    known[shape] = result
    return result


def shape_of(query: exp.Expr) -> Shape:
    """The shape of a query whose names are resolved."""
    return _query(query, {})


def _query(query: exp.Expr, outer: _Ctes) -> Shape:
    ctes = dict(outer)
    clause = query.args.get("with_")
    for cte in clause.expressions if clause is not None else ():
        ctes[cte.alias.lower()] = _query(cte.this, ctes)
    if isinstance(query, exp.Select):
        return _select(query, ctes)
    parts = (query.left, query.right) if isinstance(query, exp.SetOperation) else (query.this,)
    arms = tuple(_query(part, ctes) for part in parts)
    clauses = [query.args.get(name) for name in ("order", "limit", "offset")]
    own, inner = _parts([item for item in clauses if item is not None], ctes)
    return Shape(own, arms, inner, is_compound=True)


def _select(select: exp.Select, ctes: _Ctes) -> Shape:
    origin = select.args.get("from_")
    joins = select.args.get("joins") or []
    sources: list[Shape] = []
    for item in (*([origin] if origin is not None else []), *joins):
        sources.extend(_source(item.this, ctes))
    conditions = [join.args["on"] for join in joins if join.args.get("on") is not None]
    skipped = ("from_", "joins", "with_")
    clauses = [
        part
        for name, value in select.args.items()
        if name not in skipped
        for part in (value if isinstance(value, list) else [value])
        if isinstance(part, exp.Expr)
    ]
    own, inner = _parts([*clauses, *conditions], ctes)
    return Shape(own, tuple(sources), inner)


def _source(node: exp.Expr, ctes: _Ctes) -> list[Shape]:
    found: list[Shape] = []
    if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Table):
        found.extend(_source(node.this, ctes))
    elif isinstance(node, exp.Subquery):
        found.append(_query(node, ctes))
    elif isinstance(node.this, exp.Anonymous):
        own, inner = _parts(node.this.expressions, ctes)
        found.append(Shape(own + _TABLE_NODES, (), inner))
    else:
        name = node.name.lower()
        found.append(ctes.get(name) or (_VIEW if name in PARTITIONED else _TABLE))
    for join in node.args.get("joins") or []:
        found.extend(_source(join.this, ctes))
        if join.args.get("on") is not None:
            own, inner = _parts([join.args["on"]], ctes)
            found.append(Shape(own, (), inner))
    return found


def _parts(nodes: Iterable[exp.Expr], ctes: _Ctes) -> tuple[int, tuple[Shape, ...]]:
    pending, count, inner = list(nodes), 0, []
    while pending:
        node = pending.pop()
        if isinstance(node, exp.Query):
            inner.append(_query(node, ctes))
        else:
            count += 1
            pending.extend(node.iter_expressions())
    return count, tuple(inner)
