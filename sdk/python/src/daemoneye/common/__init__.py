"""Generated from protos/daemoneye/common by scripts/generate.py; do not edit."""
