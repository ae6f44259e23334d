"""One contender a file: reads a job, takes the steps, prints one JSON line of what they cost. Each runs in its own process."""
