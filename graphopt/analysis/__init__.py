"""What a model costs, what it computes, and how far two results are apart."""
