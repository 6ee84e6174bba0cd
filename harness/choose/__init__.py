"""The command that answers which method to use: planned, timed, raced on the development split, then held apart.

May import `report`, `plan` and what lies below them.
"""
