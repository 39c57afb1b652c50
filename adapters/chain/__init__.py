"""Evidence of what the log was: seals beside it, signed heads outside the database, and the check against both."""
