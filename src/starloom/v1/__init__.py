"""The wire, generated from proto/ by `make proto`."""
