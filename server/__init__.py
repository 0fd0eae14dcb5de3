"""The command line and, later, the HTTP server: everything a person calls."""
