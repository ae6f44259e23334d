"""Write a model as other tools read it, and read it back with them."""
