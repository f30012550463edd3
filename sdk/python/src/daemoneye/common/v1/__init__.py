"""Generated from protos/daemoneye/common/v1 by scripts/generate.py; do not edit."""
