"""``make soak``: a whole installation under load, changes and kills, watched (docs/reliability.md)."""
