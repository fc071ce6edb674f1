"""Physics of the two bodies: the models, and backends that step them, one file each."""
