"""A whole collector: publishes the load average of this host once a second."""

import asyncio
import os

from collector_core import Emit, Event, EventSource, SourceCaps, run
from daemoneye.common.v1.common_pb2 import PerformanceRecord
from daemoneye.eventbus.v1.event_data_pb2 import PerformanceEventData
from daemoneye.ipc.v1.ipc_pb2 import MONITORING_DOMAIN_PERFORMANCE


class LoadAverage(EventSource):
    name = "loadavg"
    caps = SourceCaps(domain=MONITORING_DOMAIN_PERFORMANCE)

    async def watch(self, emit: Emit) -> None:
        while True:
            record = PerformanceRecord(metric_name="load1", value=os.getloadavg()[0], unit="1")
            data = PerformanceEventData(performance=record)
            await emit(Event("events.performance.utilization", data))
            await asyncio.sleep(1)


if __name__ == "__main__":
    run("loadmon", LoadAverage())
