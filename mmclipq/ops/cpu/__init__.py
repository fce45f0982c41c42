"""Compiled operators of the CPU, products by oneDNN."""
