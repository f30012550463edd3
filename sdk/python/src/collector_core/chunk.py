"""Records of a task packed into chunks of bounded size."""

from collections.abc import AsyncGenerator, AsyncIterator

from collector_core.event import Record
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_service_pb2, ipc_pb2
from daemoneye_mesh.errors import ErrorReason, OverloadedError
from daemoneye_mesh.limits import MAX_CHUNK_BYTES

__all__ = ["TARGET_CHUNK_BYTES", "ChunkWriter", "write_chunks"]

TARGET_CHUNK_BYTES = 256 << 10
"""Chunks are sent once they reach this size: large enough to be cheap, small enough to flow."""

_FRAMING_BYTES = 6
"""Tag and length of one record in its chunk, at most; empty records have a size, too."""

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
        size_bytes = record.ByteSize() + _FRAMING_BYTES
        if size_bytes > MAX_CHUNK_BYTES - TARGET_CHUNK_BYTES:
            raise OverloadedError(
                f"one record of {size_bytes} bytes does not fit into a chunk; truncate its fields",
                reason=ErrorReason.RESULT_TOO_LARGE,
                size_bytes=size_bytes,
            )
        full = None if self._fits(record, size_bytes) else self._cut()
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

    def _fits(self, record: Record, size_bytes: int) -> bool:
        if isinstance(record, common_pb2.HashResult) and self._result.HasField("hash_result"):
            return False  # a chunk has room for one
        return not self._size_bytes or self._size_bytes + size_bytes <= TARGET_CHUNK_BYTES

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
) -> AsyncGenerator[collector_service_pb2.ExecuteTaskResponse, None]:
    """Yields every chunk but the last one."""
    async for record in records:
        if (chunk := writer.add(record)) is not None:
            yield chunk
