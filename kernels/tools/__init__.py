"""What the ``capgate`` commands do with the operations: compile, bench, compare, demo."""
