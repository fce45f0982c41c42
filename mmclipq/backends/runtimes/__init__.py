"""Backends of others, and the exported integers, executing exported graphs."""
