"""Generated from protos/daemoneye/agent/v1 by scripts/generate.py; do not edit."""
