"""The alternatives, one module per family, each as its own users would run it."""
