"""Records of a task packed into chunks of bounded size."""

from collections.abc import AsyncIterator

from collector_core.event import Record
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_service_pb2, ipc_pb2
from daemoneye_mesh.errors import ErrorReason, OverloadedError
from daemoneye_mesh.limits import MAX_CHUNK_BYTES

__all__ = ["TARGET_CHUNK_BYTES", "ChunkWriter", "write_chunks"]

TARGET_CHUNK_BYTES = 256 << 10
"""Chunks are sent once they reach this size: large enough to be cheap, small enough to flow."""

_FIELDS: dict[type, str] = {
    common_pb2.ProcessRecord: "processes",
    common_pb2.NetworkRecord: "network_events",
    common_pb2.FilesystemRecord: "filesystem_events",
    common_pb2.PerformanceRecord: "performance_events",
}


class ChunkWriter:
    """Collects records into one ``ExecuteTaskResponse`` after the other."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._index = 0
        self._size_bytes = 0
        self._result = ipc_pb2.DetectionResult(task_id=task_id, success=True)
        self.record_count = 0
        """Records in all chunks so far."""

    def add(self, record: Record) -> collector_service_pb2.ExecuteTaskResponse | None:
        """Adds a record; returns the chunk that it did not fit into any more, if any.

        Raises:
            OverloadedError: the record alone is larger than a chunk may be.
        """
        size_bytes = record.ByteSize()
        if size_bytes > MAX_CHUNK_BYTES - TARGET_CHUNK_BYTES:
            raise OverloadedError(
                f"one record of {size_bytes} bytes does not fit into a chunk; truncate its fields",
                reason=ErrorReason.RESULT_TOO_LARGE,
                size_bytes=size_bytes,
            )
        full = self._cut() if self._size_bytes + size_bytes > TARGET_CHUNK_BYTES else None
        if isinstance(record, common_pb2.HashResult):
            self._result.hash_result.CopyFrom(record)
        else:
            getattr(self._result, _FIELDS[type(record)]).append(record)
        self._size_bytes += size_bytes
        self.record_count += 1
        return full

    def finish(self) -> collector_service_pb2.ExecuteTaskResponse:
        """Returns the last chunk, which may be empty of records."""
        chunk = self._cut()
        chunk.is_last = True
        chunk.record_count = self.record_count
        return chunk

    def _cut(self) -> collector_service_pb2.ExecuteTaskResponse:
        chunk = collector_service_pb2.ExecuteTaskResponse(
            result=self._result, chunk_index=self._index
        )
        self._index += 1
        self._size_bytes = 0
        self._result = ipc_pb2.DetectionResult(task_id=self._task_id, success=True)
        return chunk


async def write_chunks(
    records: AsyncIterator[Record], writer: ChunkWriter
) -> AsyncIterator[collector_service_pb2.ExecuteTaskResponse]:
    """Yields every chunk but the last one."""
    async for record in records:
        if (chunk := writer.add(record)) is not None:
            yield chunk
