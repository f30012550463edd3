"""Server reflection under both names, ``grpc.reflection.v1`` and ``v1alpha``.

grpcio-reflection serves v1alpha only, while grpcurl and buf ask for v1 first and would log a failed
call on every run. The two have identical messages, so v1 is v1alpha's file copied to the other
package and served by the same handler.
"""

from collections.abc import Iterable

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

__all__ = ["REFLECTION_SERVICES", "add_reflection"]

V1_SERVICE = "grpc.reflection.v1.ServerReflection"
REFLECTION_SERVICES = (V1_SERVICE, reflection.SERVICE_NAME)

_V1_FILE = "grpc/reflection/v1/reflection.proto"
_METHOD = "ServerReflectionInfo"


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Serves reflection for ``services`` and for itself."""
    _register_v1_file()
    names = sorted({*services, *REFLECTION_SERVICES})
    servicer = ReflectionServicer(service_names=names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in REFLECTION_SERVICES:
        generic = grpc.method_handlers_generic_handler(service, {_METHOD: handler})
        server.add_generic_rpc_handlers((generic,))


def _register_v1_file() -> None:
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_V1_FILE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        pool.Add(_rename(file))


def _rename(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    old, new = ".grpc.reflection.v1alpha.", ".grpc.reflection.v1."
    file.name = _V1_FILE
    file.package = "grpc.reflection.v1"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:  # scalars have none, and setting it would say they had
                field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    return file
