"""What the operations share. Nothing in here imports an operation."""
