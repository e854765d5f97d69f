"""The experiment: recipes and run ids, what people type, datasets, the store, machines, engines."""
