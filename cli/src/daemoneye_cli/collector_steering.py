"""``daemoneye collectors start``, ``stop``, ``restart``, ``pause`` and ``resume``."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye_cli.arguments import Subparsers, add_command
from daemoneye_cli.collector_call import add_collector_id, ask_admin, ask_admin_twice, make_key
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Output
from daemoneye_cli.session import OperatorSession

__all__ = ["add_steering", "steer_collector"]

STEER_TIMEOUT_S = 10.0
SOURCES_TIMEOUT_S = 35.0
RESTART_TIMEOUT_S = 65.0


@dataclass(frozen=True, slots=True)
class Steering:
    """One of the commands."""

    summary: str
    description: str
    state: str
    """What the collector does afterwards."""
    ask: Callable[[OperatorSession, str, Output], Awaitable[object]]


def add_steering(nested: Subparsers) -> None:
    """Adds the commands."""
    for name, steering in _STEERINGS.items():
        parser = add_command(
            nested,
            name,
            summary=steering.summary,
            description=steering.description,
            run=steer_collector,
            examples=(
                f"daemoneye collectors {name} procmond",
                f"daemoneye collectors {name} procmond --format json",
            ),
        )
        add_collector_id(parser)
        parser.set_defaults(steering=steering)


async def steer_collector(invocation: Invocation) -> ExitCode:
    """Runs one of the commands."""
    collector_id: str = invocation.arguments.collector_id
    steering: Steering = invocation.arguments.steering
    async with invocation.session() as session:
        await steering.ask(session, collector_id, invocation.output)
    if invocation.output.is_table:
        invocation.output.remark(f"collector {collector_id} is {steering.state}")
    else:
        invocation.output.show_record({"collector_id": collector_id, "state": steering.state})
    return ExitCode.COMPLETE


async def _start(session: OperatorSession, collector_id: str, _: Output) -> None:
    request = pb.StartCollectorRequest(collector_id=collector_id)
    await ask_admin(session, lambda stub: stub.StartCollector, request, SOURCES_TIMEOUT_S)


async def _stop(session: OperatorSession, collector_id: str, _: Output) -> None:
    request = pb.StopCollectorRequest(collector_id=collector_id)
    await ask_admin(session, lambda stub: stub.StopCollector, request, SOURCES_TIMEOUT_S)


async def _restart(session: OperatorSession, collector_id: str, output: Output) -> None:
    request = pb.RestartCollectorRequest(collector_id=collector_id, idempotency_key=make_key())
    await ask_admin_twice(
        session, lambda stub: stub.RestartCollector, request, RESTART_TIMEOUT_S, output
    )


async def _pause(session: OperatorSession, collector_id: str, _: Output) -> None:
    request = pb.PauseCollectorRequest(collector_id=collector_id)
    await ask_admin(session, lambda stub: stub.PauseCollector, request, STEER_TIMEOUT_S)


async def _resume(session: OperatorSession, collector_id: str, _: Output) -> None:
    request = pb.ResumeCollectorRequest(collector_id=collector_id)
    await ask_admin(session, lambda stub: stub.ResumeCollector, request, STEER_TIMEOUT_S)


_STEERINGS = {
    "start": Steering(
        "make a stopped collector watch",
        """\
Makes a stopped collector prepare its sources and watch. One that watches already is
left as it is. It answers once every source is prepared or has failed; 'health' then
says which failed. This does not start a process: a service manager does that.""",
        "watching",
        _start,
    ),
    "stop": Steering(
        "make a collector stop and close its sources",
        """\
Makes a collector stop watching and close its sources. Its process stays, and refuses
queries until 'start'. Nothing is seen meanwhile: answers are degraded. 'pause' is the
milder way, 'shutdown' ends the process.""",
        "stopped",
        _stop,
    ),
    "restart": Steering(
        "stop a collector and start it again",
        """\
Stops a collector and starts it again in the same process, so that every source is
prepared anew. Where no answer comes, it is asked once more under the same key, and the
collector restarts once all the same.""",
        "watching",
        _restart,
    ),
    "pause": Steering(
        "make a collector stop watching",
        """\
Makes a collector stop watching; its sources stay open and it still answers queries.
Nothing is seen until 'resume': answers about events are degraded.""",
        "paused",
        _pause,
    ),
    "resume": Steering(
        "make a paused collector watch again",
        "Makes a paused collector watch again. One that watches already is left as it is.",
        "watching",
        _resume,
    ),
}
