"""Backends that plan a graph once per shape and run it as compiled programs."""
