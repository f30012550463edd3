"""Generated from protos/daemoneye/ipc/v1 by scripts/generate.py; do not edit."""
