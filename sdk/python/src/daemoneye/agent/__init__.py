"""Generated from protos/daemoneye/agent by scripts/generate.py; do not edit."""
