"""Other people's frameworks in a comparison: which there are, how their environments are made, how they are asked."""
