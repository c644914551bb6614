"""Low-rank adaptation: the adapter, the loss, the loop."""
