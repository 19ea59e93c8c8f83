"""A student trained on a scored training split: objective, base losses, mixing."""
