"""The chassis that every process of the mesh shares: sockets, servers, channels, errors, identity.

It must never know what a process does with it: nothing here imports a service or the collector SDK.
"""

import os

# Both are read when grpc is imported. Its INFO lines are noise on stderr, and its fork handlers only
# log complaints: processes of the mesh start others by exec.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
