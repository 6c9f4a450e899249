from tensor_fusion.entry import client

client()
