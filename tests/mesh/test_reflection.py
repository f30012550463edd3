import asyncio

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from daemoneye.ipc.v1 import collector_service_pb2  # noqa: F401 -- registers the file to be found
from daemoneye_mesh.channel import open_channel

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
NAMES = {
    "daemoneye.ipc.v1.CollectorService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


@pytest.fixture(params=["v1", "v1alpha"])
async def ask(serve_methods, request):
    """Asks the reflection service of one version, as a client without a token does."""
    served = await serve_methods({})
    async with open_channel(served.server.path) as channel:
        method = channel.stream_stream(
            f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

        async def ask_one(**query):
            call = method()
            async with asyncio.timeout(GUARD_S):
                await call.write(reflection_pb2.ServerReflectionRequest(**query))
                await call.done_writing()
                answers = [one async for one in call]
            assert len(answers) == 1
            return answers[0]

        yield ask_one


async def test_reflection_lists_every_service(ask):
    answer = await ask(list_services="")
    assert {one.name for one in answer.list_services_response.service} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
async def test_every_listed_service_has_a_file_that_declares_it(ask, name):
    answer = await ask(file_containing_symbol=name)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(one)
        for one in answer.file_descriptor_response.file_descriptor_proto
    ]
    declared = {f"{file.package}.{one.name}" for file in files for one in file.service}
    assert name in declared


async def test_v1_file_speaks_of_v1_messages_only(ask):
    answer = await ask(file_containing_symbol="grpc.reflection.v1.ServerReflection")
    (encoded,) = answer.file_descriptor_response.file_descriptor_proto
    assert b"v1alpha" not in descriptor_pb2.FileDescriptorProto.FromString(
        encoded
    ).SerializeToString().replace(b"grpc_reflection_v1alpha", b"")


async def test_unknown_symbol_is_answered_with_not_found(ask):
    answer = await ask(file_containing_symbol="no.Such")
    assert answer.error_response.error_code == 5
