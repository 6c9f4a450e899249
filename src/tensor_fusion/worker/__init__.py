"""The supervisor: listens, checks the greeting and gives every client a session process of its own."""
