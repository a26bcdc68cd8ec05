"""``capgate compare``: runs of ``capgate bench`` on several stacks, beside each other."""
