"""A collector that emits as many events as a file asks for, as fast as it can.

The file FLOOD_FILE holds two numbers: events of the class lifecycle and of the class sample that are
to have been emitted in all. Each says its own number, so that everybody can tell which are missing.
"""

import asyncio
import os
from pathlib import Path

from collector_core import Emit, Event, EventClass, EventSource, SourceCaps, run
from daemoneye.common.v1.common_pb2 import FilesystemRecord, PerformanceRecord
from daemoneye.eventbus.v1.event_data_pb2 import FilesystemEventData, PerformanceEventData

POLL_S = 0.02
PADDING = "x" * 200
YIELD_EVERY = 64


class Flood(EventSource):
    name = "flood"
    caps = SourceCaps.FILESYSTEM | SourceCaps.PERFORMANCE

    def __init__(self) -> None:
        self._file = Path(os.environ["FLOOD_FILE"])
        self._lifecycle = 0
        self._sample = 0

    async def watch(self, emit: Emit) -> None:
        while True:
            lifecycle, sample = (int(one) for one in self._file.read_text().split())
            while self._lifecycle < lifecycle or self._sample < sample:
                if self._lifecycle < lifecycle:
                    await emit(self._next_lifecycle())
                if self._sample < sample:
                    await emit(self._next_sample())
                if (self._lifecycle + self._sample) % YIELD_EVERY < 2:
                    await asyncio.sleep(0)
            await asyncio.sleep(POLL_S)

    def _next_lifecycle(self) -> Event:
        self._lifecycle += 1
        record = FilesystemRecord(path=f"/{self._lifecycle}/{PADDING}", operation_type="write")
        return Event("events.filesystem.operation", FilesystemEventData(filesystem=record))

    def _next_sample(self) -> Event:
        self._sample += 1
        record = PerformanceRecord(metric_name=PADDING, value=self._sample, unit="1")
        return Event(
            "events.performance.utilization",
            PerformanceEventData(performance=record),
            event_class=EventClass.SAMPLE,
        )


if __name__ == "__main__":
    run("flood", Flood())
