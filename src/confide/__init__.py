"""confide: train on data that nobody may see, serve on inputs that nobody may see, and measure the choice."""
