"""Models: find, load, save, and look inside."""
