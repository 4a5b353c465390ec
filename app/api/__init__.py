"""The HTTP routes: each reads a request, asks one of the machines, and says what came of it."""
