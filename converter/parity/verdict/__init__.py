"""When it matches: distances from the truth, and the limits they are held against."""
