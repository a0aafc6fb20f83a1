"""Present the result of a check to people and to programs."""
