"""Tools for those who work on recoup; not part of the package."""
