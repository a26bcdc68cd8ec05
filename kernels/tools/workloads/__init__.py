"""Calls of the operations as serving engines make them, that the commands time and check."""
