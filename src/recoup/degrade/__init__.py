"""Degrade: the injuries, one method a file."""
