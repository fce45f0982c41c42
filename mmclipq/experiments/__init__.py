"""The paper's tables and figures: declarative files, and what runs and prints them.

Nothing else of the package imports this room.
"""
