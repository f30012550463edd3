import asyncio

import pytest


def states(document):
    return {one["name"]: one["state"] for one in document["sockets"]}


def test_health_of_a_whole_mesh_exits_0(mesh, daemoneye):
    result = daemoneye("health", "--format", "json")
    assert result.code == 0
    document = result.document
    assert document["is_healthy"] is True
    assert states(document) == {
        "agent": "serving",
        "broker": "serving",
        "collector procmond": "serving",
    }
    assert document["status"]["uptime"] == 125
    assert document["completeness"] == {"state": "complete", "causes": []}


def test_health_as_table_says_the_same_in_words(mesh, daemoneye):
    result = daemoneye("health")
    assert result.code == 0
    assert "0.1.0, up 2m 5s, 15 rules run" in result.out
    assert "subscribed" in result.out


def test_health_without_full_coverage_exits_3(mesh, fakes, daemoneye):
    mesh.status.degradations = (fakes.POLLING,)
    result = daemoneye("health")
    assert result.code == 3
    assert "degraded: procmond: polling" in result.err


def test_health_with_a_process_that_is_not_serving_exits_3(mesh, daemoneye, runtime_dir):
    dead = runtime_dir / "collectors" / "dead.sock"
    dead.touch()
    result = daemoneye("health", "--format", "json")
    assert result.code == 3
    assert states(result.document)["collector dead"] == "unreachable"


def test_health_without_a_broker_exits_3(mesh, daemoneye):
    mesh.layout.eventbus_socket.unlink()
    result = daemoneye("health", "--format", "json")
    assert (result.code, states(result.document)["broker"]) == (3, "unreachable")


def test_health_without_an_agent_exits_4_and_still_tells_of_the_others(mesh, daemoneye):
    mesh.layout.agent_socket.unlink()
    result = daemoneye("health", "--format", "json")
    assert result.code == 4
    assert states(result.document)["broker"] == "serving"
    assert result.document["status"] is None
    assert result.document["error"]["code"] == "UNAVAILABLE"


def test_health_without_any_mesh_exits_4_with_nothing_on_standard_output(daemoneye, runtime_dir):
    result = daemoneye("health", "--format", "json")
    assert (result.code, result.out) == (4, "")
    assert str(runtime_dir) in result.error["message"]


def test_health_without_a_token_exits_6_and_still_shows_the_sockets(mesh, daemoneye):
    mesh.token_file.unlink()
    result = daemoneye("health", "--format", "json")
    assert result.code == 6
    assert states(result.document)["agent"] == "serving"


@pytest.mark.parametrize("command", ["health", "tables"])
async def test_commands_can_run_where_a_loop_runs_in_another_thread(mesh, daemoneye, command):
    result = await asyncio.to_thread(daemoneye, command)
    assert result.code == 0
