"""The chassis that every process of the mesh shares: sockets, servers, channels, errors, identity.

It must never know what a process does with it: nothing here imports a service or the collector SDK.
"""

import os

# All are read when grpc is imported. Its INFO lines are noise on stderr, and its fork handlers only
# log complaints: processes of the mesh start others by exec.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
# The event engine hands each read and write to a thread of its own and back; without it a small message
# costs a quarter less CPU and arrives sooner (docs/adr/0010). Throughput is the same.
os.environ.setdefault(
    "GRPC_EXPERIMENTS",
    "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints",
)
