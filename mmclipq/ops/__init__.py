"""Compiled operators; each is loaded on its first use."""
