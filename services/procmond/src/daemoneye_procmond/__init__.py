"""procmond: the process collector. It sees the processes of this host and says what happens to them.

It runs with more privilege than anything else in the mesh, so it must never open a network socket,
run SQL, or do anything with what it sees but publish it.
"""
