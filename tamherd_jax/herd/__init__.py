"""The Herd: task embeddings, clustering and the two algorithms, for any meta-learner."""
