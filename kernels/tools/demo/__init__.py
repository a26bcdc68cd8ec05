"""The indexer's logits of serving-shaped batches, through every variant that runs here."""
