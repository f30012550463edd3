"""Generated from protos/daemoneye/eventbus/v1 by scripts/generate.py; do not edit."""
