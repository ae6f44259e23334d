"""What to do about the damage: free repairs and a pilot are tried, and one of five verdicts is given with its evidence."""
