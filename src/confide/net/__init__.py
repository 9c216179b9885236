"""How parties meet over a network: one-round parties over HTTP in the Open Inference Protocol."""
