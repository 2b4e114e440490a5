"""The containers: what can be checked of their files, and a whole session in them (``make compose-test``)."""
