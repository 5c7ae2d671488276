"""From documents to the token store."""
