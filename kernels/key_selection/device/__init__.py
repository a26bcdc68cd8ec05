"""Device functions of the selection's kernel."""
