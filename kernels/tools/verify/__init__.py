"""``capgate verify``: every variant that this machine takes, held against float64 and timed, as a file and a page."""
