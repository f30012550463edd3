"""The table procmond describes is the table the agent offers."""

from daemoneye.ipc.v1 import collector_service_pb2
from daemoneye_agent.live_table import DEFAULT_PUSHABLE
from daemoneye_agent.schema import TABLES
from daemoneye_procmond.schema import PROCESSES_TABLE


def test_columns_are_those_of_the_agents_table_in_name_type_and_order() -> None:
    prefix = "COLUMN_TYPE_"
    type_name = collector_service_pb2.ColumnType.Name
    described = [
        (column.name, type_name(column.type).removeprefix(prefix))
        for column in PROCESSES_TABLE.columns
    ]
    offered = [(column.name, column.type.value) for column in TABLES["processes"].columns]
    assert described == offered


def test_texts_are_those_of_the_agents_table() -> None:
    described = [column.description for column in PROCESSES_TABLE.columns]
    assert described == [column.description for column in TABLES["processes"].columns]


def test_what_the_agent_pushes_down_is_what_procmond_takes() -> None:
    equal = collector_service_pb2.PREDICATE_OPERATOR_EQUAL
    taken = {
        column.name for column in PROCESSES_TABLE.columns if equal in column.pushdown_operators
    }
    assert taken == set(DEFAULT_PUSHABLE)
