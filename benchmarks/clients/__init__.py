"""The client of each system, written the fast way that its own documentation names.

Each module offers ``Sender(plan)`` and ``Receiver(plan, tallies)`` of ``benchmarks.bus_client``. All
but ``ours`` run in the peers' interpreter: there they import the standard library and that client.
"""
