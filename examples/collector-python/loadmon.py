"""A whole collector: publishes the load average of this host once a second."""

import asyncio
import os

from collector_core import Emit, Event, EventClass, EventSource, SourceCaps, run
from daemoneye.common.v1.common_pb2 import PerformanceRecord
from daemoneye.eventbus.v1.event_data_pb2 import PerformanceEventData


class LoadAverage(EventSource):
    name = "loadavg"
    caps = SourceCaps.PERFORMANCE | SourceCaps.SYSTEM_WIDE

    async def watch(self, emit: Emit) -> None:
        while True:
            record = PerformanceRecord(metric_name="load1", value=os.getloadavg()[0], unit="1")
            data = PerformanceEventData(performance=record)
            await emit(Event("events.performance.utilization", data, event_class=EventClass.SAMPLE))
            await asyncio.sleep(1)


if __name__ == "__main__":
    run("loadmon", LoadAverage())
