"""Workers and clients of other releases: a relay that plays one, and a build that is one."""
