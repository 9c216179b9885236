"""On what a model is computed, and who holds it: schemas with public bounds, tables, shipped sets, splits."""
