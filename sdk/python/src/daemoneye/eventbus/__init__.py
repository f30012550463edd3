"""Generated from protos/daemoneye/eventbus by scripts/generate.py; do not edit."""
