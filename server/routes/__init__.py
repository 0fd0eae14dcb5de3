"""The routes: each module turns requests of one kind into calls, and their news into replies."""
