"""What the service can be asked to do: one command and one function of the same name for each."""
