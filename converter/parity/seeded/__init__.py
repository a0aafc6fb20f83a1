"""Would it notice: seeded defects, and the proof that each is caught and named."""
