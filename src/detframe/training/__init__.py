"""The LightningModule and what surrounds it."""
