"""Launchers: where the points of a sweep are carried out; private to `sweep`."""
