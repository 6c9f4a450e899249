"""tensor-fusion dump: what was on the wire, frame by frame, from a capture of the network or of shared memory."""
