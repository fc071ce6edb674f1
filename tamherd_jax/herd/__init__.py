"""The Herd: embed tasks, cluster them, train one meta-learner a cluster, assign and adapt at test time."""
