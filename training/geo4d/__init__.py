"""What the Geo4D trainers are made of: clips, data sets, losses, recipes, quality."""
