"""Which checkpoint of a history was best at what, and who should teach a repair what (the tournament)."""
