"""Plan: what a repair will need in memory and time, before any weight is loaded."""
