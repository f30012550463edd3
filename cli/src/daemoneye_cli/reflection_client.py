"""Reads the services of a server by reflection and makes their messages usable.

Speaks ``grpc.reflection.v1`` and, where a server has only that, ``v1alpha``; the messages of the two
are the same. Invariants: what a server sends goes into a descriptor pool of its own and cannot change
the types of this process; the number and size of files are bounded.
"""

from collections.abc import Iterable
from difflib import get_close_matches

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from daemoneye_cli.calls import explain_failure
from daemoneye_cli.session import Link
from daemoneye_mesh.errors import InternalError, NotFoundError, OverloadedError, UnsupportedError

__all__ = ["ReflectionClient"]

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
MAX_FILES = 1_024
MAX_FILE_BYTES = 4 * 1024 * 1024

Ask = reflection_pb2.ServerReflectionRequest
Answer = reflection_pb2.ServerReflectionResponse


class ReflectionClient:
    """What one server says about itself.

    Args:
        link: the server; reflection needs no token.
        timeout_s: deadline of each question.
    """

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._version: str | None = None
        self._files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        self._added: set[str] = set()
        self.pool = descriptor_pool.DescriptorPool()
        """The types of the server."""

    async def list_services(self) -> list[str]:
        """Returns the full names of the services, sorted.

        Raises:
            UnsupportedError: the server has no reflection.
            DaemoneyeError: the call failed.
        """
        answer = await self._ask(Ask(list_services=""))
        return sorted(one.name for one in answer.list_services_response.service)

    async def load(self, symbol: str) -> None:
        """Fetches the file that defines ``symbol``, and all it needs, into ``pool``.

        Raises:
            NotFoundError: the server does not know the symbol.
            InternalError: what it sent makes no sense.
        """
        answer = await self._ask(Ask(file_containing_symbol=symbol))
        names = self._keep(answer, f"symbol {symbol}")
        for name in names:
            await self._add(name)

    async def find_service(self, name: str) -> ServiceDescriptor:
        """Returns a service by its full name, or by its last part when that is unique.

        Raises:
            NotFoundError: the server has no such service.
        """
        services = await self.list_services()
        full_name = _resolve(name, services, "service")
        await self.load(full_name)
        return self.pool.FindServiceByName(full_name)

    async def find_method(self, name: str) -> MethodDescriptor:
        """Returns a method: ``pkg.Service/Method``, ``Service.Method``, or ``Method`` if unique.

        Raises:
            NotFoundError: the server has no such method, or several.
        """
        service_name, _, method_name = name.replace("/", ".").strip(".").rpartition(".")
        if service_name:
            service = await self.find_service(service_name)
            methods = list(service.methods_by_name)
            return service.methods_by_name[_resolve(method_name, methods, "method")]
        found = [method for method in await self._all_methods() if method.name == method_name]
        if len(found) == 1:
            return found[0]
        known = sorted({method.name for method in await self._all_methods()})
        if not found:
            raise _not_found("method", method_name, known)
        owners = ", ".join(sorted(method.containing_service.full_name for method in found))
        raise NotFoundError(
            f"method {method_name} is in several services ({owners}); write SERVICE/{method_name}",
            method=method_name,
            services=owners,
        )

    async def _all_methods(self) -> list[MethodDescriptor]:
        methods: list[MethodDescriptor] = []
        for name in await self.list_services():
            await self.load(name)
            methods += self.pool.FindServiceByName(name).methods
        return methods

    async def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> Answer:
        versions = VERSIONS if self._version is None else (self._version,)
        for version in versions:
            try:
                answer = await self._ask_version(version, request)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    continue
                raise explain_failure(error, self._link.peer, self._timeout_s) from None
            self._version = version
            return answer
        peer = self._link.peer
        raise UnsupportedError(
            f"{peer.name} offers no reflection on {peer.socket}; use its proto files instead",
            peer=peer.name,
            socket=peer.socket,
        )

    async def _ask_version(
        self, version: str, request: reflection_pb2.ServerReflectionRequest
    ) -> Answer:
        # One request and the end of the stream go out in one step: with stream_stream a server that
        # refuses before the request is written turns its refusal into an error of gRPC's own.
        method = self._link.channel.unary_stream(
            f"/{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=Ask.SerializeToString,
            response_deserializer=Answer.FromString,
        )

        call = method(request, timeout=self._timeout_s)
        try:
            async for answer in call:
                return answer
        finally:
            call.cancel()
        raise self._nonsense("it ended without an answer")

    async def _add(self, name: str, depth: int = 0) -> None:
        """Adds one file to the pool, what it imports first."""
        if name in self._added:
            return
        self._added.add(name)  # before its imports, so that a circle ends
        if name not in self._files:
            answer = await self._ask(Ask(file_by_filename=name))
            self._keep(answer, f"file {name}")
        file = self._files.get(name)
        if file is None or depth > 64:
            raise self._nonsense(f"it does not send {name}")
        for imported in file.dependency:
            await self._add(imported, depth + 1)
        try:
            self.pool.Add(file)
        except TypeError:
            raise self._nonsense(f"{name} is not a valid proto file") from None

    def _keep(self, answer: Answer, what: str) -> list[str]:
        """Remembers the files of an answer and returns their names."""
        if answer.HasField("error_response"):
            raise NotFoundError(
                f"{self._link.peer.name} does not know {what}; list what it has with"
                " 'daemoneye inspect SOCKET list'",
                what=what,
            )
        contents = answer.file_descriptor_response.file_descriptor_proto
        return [self._keep_file(content) for content in contents]

    def _keep_file(self, content: bytes) -> str:
        if len(content) > MAX_FILE_BYTES or len(self._files) >= MAX_FILES:
            raise OverloadedError(
                f"{self._link.peer.name} describes more than {MAX_FILES} files or one above"
                f" {MAX_FILE_BYTES} bytes; use its proto files instead",
                limit_files=MAX_FILES,
                limit_bytes=MAX_FILE_BYTES,
            )
        try:
            file = descriptor_pb2.FileDescriptorProto.FromString(content)
        except DecodeError:
            raise self._nonsense("a file descriptor does not parse") from None
        self._files.setdefault(file.name, file)
        return file.name

    def _nonsense(self, what: str) -> InternalError:
        return InternalError(
            f"reflection of {self._link.peer.name} makes no sense: {what}; report it to its author",
            peer=self._link.peer.name,
            problem=what,
        )


def _resolve(name: str, known: Iterable[str], kind: str) -> str:
    names = sorted(known)
    if name in names:
        return name
    short = [one for one in names if one.endswith(f".{name}")]
    if len(short) == 1:
        return short[0]
    raise _not_found(kind, name, names)


def _not_found(kind: str, name: str, known: list[str]) -> NotFoundError:
    shorts = {one.rpartition(".")[2]: one for one in known}
    closest = get_close_matches(name.rpartition(".")[2], shorts, n=1)
    advice = f"did you mean {shorts[closest[0]]}?" if closest else f"there are {', '.join(known)}"
    shown = ascii(name[:120])
    return NotFoundError(f"there is no {kind} {shown}; {advice}", kind=kind, name=name[:120])
