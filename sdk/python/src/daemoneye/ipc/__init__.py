"""Generated from protos/daemoneye/ipc by scripts/generate.py; do not edit."""
