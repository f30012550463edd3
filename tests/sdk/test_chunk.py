import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector_core.chunk import TARGET_CHUNK_BYTES, ChunkWriter, write_chunks
from daemoneye.common.v1 import common_pb2
from daemoneye_mesh.errors import ErrorReason, OverloadedError
from daemoneye_mesh.limits import MAX_CHUNK_BYTES

RECORDS = [
    (common_pb2.ProcessRecord, "processes"),
    (common_pb2.NetworkRecord, "network_events"),
    (common_pb2.FilesystemRecord, "filesystem_events"),
    (common_pb2.PerformanceRecord, "performance_events"),
]


def pack(records):
    writer = ChunkWriter("t1")
    full = [chunk for record in records if (chunk := writer.add(record)) is not None]
    return [*full, writer.finish()]


def process(pid, size_bytes=0):
    return common_pb2.ProcessRecord(pid=pid, name="x" * size_bytes)


def check(chunks, record_count):
    """Checks what the contract demands of every answer."""
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk.result.task_id == "t1" and chunk.result.success for chunk in chunks)
    assert max(chunk.ByteSize() for chunk in chunks) <= MAX_CHUNK_BYTES
    assert chunks[-1].record_count == record_count
    assert not any(chunk.record_count for chunk in chunks[:-1])


def test_answer_without_records_is_one_empty_last_chunk():
    chunks = pack([])
    check(chunks, 0)
    assert len(chunks) == 1


@pytest.mark.parametrize(("cls", "field"), RECORDS)
def test_each_kind_of_record_goes_into_its_field(cls, field):
    (chunk,) = pack([cls(), cls()])
    assert len(getattr(chunk.result, field)) == 2
    assert chunk.record_count == 2


@given(st.lists(st.integers(0, 700_000), max_size=25))
@settings(max_examples=60, deadline=None)
def test_records_of_any_size_arrive_whole_and_in_order(sizes):
    chunks = pack([process(pid, size) for pid, size in enumerate(sizes)])
    check(chunks, len(sizes))
    got = [(one.pid, len(one.name)) for chunk in chunks for one in chunk.result.processes]
    assert got == list(enumerate(sizes))
    assert all(chunk.result.processes for chunk in chunks[:-1])


def test_ten_thousand_records_are_spread_over_chunks_of_the_target_size():
    chunks = pack([process(pid, 500) for pid in range(10_000)])
    check(chunks, 10_000)
    assert len(chunks) > 10
    assert all(
        TARGET_CHUNK_BYTES / 2 < chunk.ByteSize() <= TARGET_CHUNK_BYTES + 1_000
        for chunk in chunks[:-1]
    )


def test_records_without_content_fill_chunks_too():
    chunks = pack([common_pb2.ProcessRecord()] * 300_000)
    check(chunks, 300_000)
    assert len(chunks) > 1


def test_every_hash_result_is_kept():
    chunks = pack([common_pb2.HashResult(file_path=name) for name in "abc"])
    check(chunks, 3)
    assert [chunk.result.hash_result.file_path for chunk in chunks] == ["a", "b", "c"]


def test_record_that_fits_into_no_chunk_is_refused_with_its_size():
    with pytest.raises(OverloadedError, match="truncate its fields") as refused:
        ChunkWriter("t1").add(process(1, MAX_CHUNK_BYTES))
    assert refused.value.reason is ErrorReason.RESULT_TOO_LARGE
    assert int(refused.value.metadata["size_bytes"]) > MAX_CHUNK_BYTES


async def test_write_chunks_yields_all_but_the_last():
    async def records():
        for pid in range(3):
            yield process(pid, 200_000)

    writer = ChunkWriter("t1")
    chunks = [chunk async for chunk in write_chunks(records(), writer)]
    assert [chunk.chunk_index for chunk in chunks] == [0, 1]
    check([*chunks, writer.finish()], 3)
