"""Many runs from one config, what they share done once, and a leaderboard of them."""
