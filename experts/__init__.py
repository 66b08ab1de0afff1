"""One file per expert backend. Each imports `multimoe` only: never another expert, never the gateway."""
