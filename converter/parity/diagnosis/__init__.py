"""Why not: the operation that diverges, and the cause that explains it."""
