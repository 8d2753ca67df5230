"""How the embedded parts are trained that the three trainers take as given."""
