"""What the operations share; it imports none of them."""
