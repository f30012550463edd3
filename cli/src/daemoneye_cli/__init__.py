"""The operator command ``daemoneye``: brings the mesh up, asks it, watches it and looks inside it.

It is a client like any other: it opens neither the database nor the ledger, and everything it knows
comes over the sockets of the mesh.
"""
