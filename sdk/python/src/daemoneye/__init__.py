"""Generated from protos/daemoneye by scripts/generate.py; do not edit."""
