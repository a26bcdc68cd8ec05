"""The indexer's logits of serving-shaped batches, through every branch that runs here."""
