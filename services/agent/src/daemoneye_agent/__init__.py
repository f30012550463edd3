"""The agent: registry, event store, SQL detection, alerts, and the issuer of identities.

It runs unprivileged and must never listen on the network. It is the only process that opens the
event store and the only one that holds the signing key.
"""
