"""The table that this collector answers for, as ``DescribeSchema`` tells it.

Invariant: the columns are those of ``daemoneye_mesh.process_table``, which the agent offers too.
"""

from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_service_pb2 as pb
from daemoneye_mesh.process_table import PROCESS_COLUMNS

__all__ = ["PROCESSES_TABLE"]

_PUSHED_DOWN = {
    "pid": [pb.PREDICATE_OPERATOR_EQUAL],
    "name": [pb.PREDICATE_OPERATOR_EQUAL],
    "exe": [pb.PREDICATE_OPERATOR_GLOB],
}

PROCESSES_TABLE = pb.TableDescription(
    name="processes",
    description="the processes that run right now",
    task_type=common_pb2.TASK_TYPE_ENUMERATE_PROCESSES,
    columns=[
        pb.ColumnDescription(
            name=column.name,
            type=pb.ColumnType.Value(f"COLUMN_TYPE_{column.type}"),
            description=column.description,
            pushdown_operators=_PUSHED_DOWN.get(column.name, []),
        )
        for column in PROCESS_COLUMNS
    ],
)
