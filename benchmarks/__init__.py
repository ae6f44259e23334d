"""Side by side with what users would otherwise run, in one process, as ratios of medians. `make bench` runs them all."""
