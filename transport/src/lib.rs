//! Moves opaque frames between two processes: TCP, shared memory, verbs, simulation.
