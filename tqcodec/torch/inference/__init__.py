"""Networks that compute from compressed weights."""
