"""What is computed: the graph, the public preparation of its inputs, and the signed file that carries both."""
