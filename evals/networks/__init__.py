"""Networks of others that scores and benchmarks are made with."""
