"""Thermal states of a few qubits, as dense matrices."""
