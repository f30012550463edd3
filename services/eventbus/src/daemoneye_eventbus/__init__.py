"""The broker of the mesh: takes events from publishers and fans them out to subscribers.

It keeps everything in memory and bounded; durability is the business of the two ends. It never
reads ``/proc`` and never writes messages to disk.
"""
